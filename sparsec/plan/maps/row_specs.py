"""Specs of what rows of a tensor come to: one number each."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RowLse:
    """out = log Σ exp x over the last dim: x ``[B,N,heads,dim]`` of ``dtype`` -> fp32 ``[B,N,heads]``."""

    name: str
    x: str
    out: str
    heads: int
    dim: int
    dtype: str
    length: str = "N"

    @property
    def shape(self) -> tuple[int | str, ...]:
        """Of x."""
        return ("B", self.length, self.heads, self.dim)
