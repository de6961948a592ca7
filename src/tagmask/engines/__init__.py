"""Executors: what lets many shards be segmented, in this process or on a Ray cluster."""
