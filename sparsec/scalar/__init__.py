"""Scalar functions, their derivatives, symbolic dims and ranges; the only bridge to sympy."""
