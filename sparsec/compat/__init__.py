"""Names and signatures of other libraries over sparsec's kernels, so that a program switches by changing an import."""
