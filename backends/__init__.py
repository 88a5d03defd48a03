"""Printers of tile programs into source, and builders of that source."""
