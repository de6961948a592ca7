"""Numerical cores that refine maps: arrays in, arrays out; they know nothing of runs, files or networks."""
