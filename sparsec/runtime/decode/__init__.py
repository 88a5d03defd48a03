"""Decoding: caches, pages, steps, graphs."""
