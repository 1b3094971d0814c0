"""Benchmarks: ratios measured within one run. ``python -m bench`` prints every bar and writes bench/results/."""
