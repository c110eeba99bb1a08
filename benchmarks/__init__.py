"""Benchmarks: Folkmoot beside what people use today, in one run, as ratios.

See `python -m benchmarks --help`.
"""
