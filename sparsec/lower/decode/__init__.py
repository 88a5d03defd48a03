"""Kernels of a decode step: pages, rings and splits over keys."""
