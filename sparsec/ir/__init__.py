"""The graph: immutable nodes, their constructors, verifier, printer and rewriter."""
