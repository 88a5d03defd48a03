"""Packed documents: tables of lengths, calls, training."""
