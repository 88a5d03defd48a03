"""Tile programs as Triton source."""
