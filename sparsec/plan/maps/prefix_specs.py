"""Specs of running sums over tokens and of their adjoint."""

from __future__ import annotations

from dataclasses import dataclass

from sparsec.scalar.expr import Expr


@dataclass(frozen=True, slots=True)
class Prefix:
    """The running sum over tokens of ``fn`` (of x0): x ``[B,N,heads]`` of ``dtype`` -> out ``[B,N,heads]`` fp32.

    Attributes:
        length: the launch parameter with N.
    """

    name: str
    x: str
    out: str
    heads: int
    length: str
    dtype: str
    fn: Expr


@dataclass(frozen=True, slots=True)
class PrefixGrad:
    """grad_x ``[B,N,heads]`` = fn'(x) * the sum of grad (fp32) over all tokens from each one on; rounded once."""

    name: str
    forward: Prefix
    grad: str
    grad_x: str
    out_dtype: str
