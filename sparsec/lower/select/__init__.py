"""Selectors and losses over them: scores, the running top-k, their gradients."""
