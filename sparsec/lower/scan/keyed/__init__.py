"""Chunks of states of which every key channel fades by itself, or that are erased along vectors of their own."""
