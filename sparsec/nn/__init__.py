"""Torch modules built on compiled variants."""
