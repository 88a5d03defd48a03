"""The plan: a graph cut into kernels and the buffers between them."""
