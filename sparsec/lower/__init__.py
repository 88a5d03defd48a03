"""From a kernel's piece of graph and a schedule to a tile program: one file per schedule class."""
