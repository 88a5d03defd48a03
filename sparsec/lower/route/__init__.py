"""Routers: which parts of a bank a token chooses."""
