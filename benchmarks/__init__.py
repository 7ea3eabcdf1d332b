"""Comparisons with peers, run by hand: `python -m benchmarks.speed --help`. Results are in benchmarks/README.md."""
