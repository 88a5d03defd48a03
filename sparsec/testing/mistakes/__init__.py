"""Mistakes that checks must find: kernels and tile programs that are wrong on purpose, and what Triton gets wrong."""
