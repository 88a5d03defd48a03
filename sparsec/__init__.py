"""sparsec: declare a sparse-memory attention layer, get checked and tuned kernels."""
