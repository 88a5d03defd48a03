"""Published designs, one per file: a function of knobs that returns a graph."""
