"""Measure, tabulate, report. Never torch: benchmarks run on the board."""
