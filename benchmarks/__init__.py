"""Benchmarks, run by hand: ``make benchmark``. Ratios within one run, printed as tables."""
