"""Mixtures of memories: how much each candidate weighs for a query, and the gradients of that."""
