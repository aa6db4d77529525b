"""The modules of `benchmarks/bench.py`: ways to run a program, parts that measure them, and the report."""
