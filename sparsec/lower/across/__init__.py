"""Work that several kernels of one plan would do, done once, after each has its schedule and its programs."""
