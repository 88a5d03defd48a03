"""A variant as one readable module that needs no sparsec."""
