"""Modules of `benchmarks/bench.py`: ways to run a program, parts that measure them, the report."""
