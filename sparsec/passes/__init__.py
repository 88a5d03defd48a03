"""Rewrites of a graph into normal form: one pipeline, one idea per file."""
