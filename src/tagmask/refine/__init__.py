"""Numerical functions that refine response maps: arrays in, arrays out, without runs, files or networks."""
