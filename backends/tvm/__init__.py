"""Tile programs as TIR, for the CPU and for CUDA."""
