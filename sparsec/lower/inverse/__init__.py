"""Lists turned around: who chose a chunk, by a counting sort."""
