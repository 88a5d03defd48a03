"""Whole variants: the chain of trust on one set of inputs, in this process or another, with gradients, packed, decoded.

``case`` is one call as plain values, ``agreement`` one layer against the oracle, ``benchmark`` what a benchmark's own
reference must show.
"""
