"""Measurements of minimind: speed, memory, and results on real data. Not part of the package."""
