"""What `benchmarks/bench.py` is made of: ways to run a program, parts that measure them, and a report."""
