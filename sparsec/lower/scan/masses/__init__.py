"""Mixtures whose candidates are masses of keys, in chunks: scores leave the scans, masses stay in registers."""
