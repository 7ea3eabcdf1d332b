"""Compress language models from one validated recipe."""

__version__ = "0.1.0"
