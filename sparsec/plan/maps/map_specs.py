"""Specs of maps: a row function of every source, then a traced function of all of them; and the adjoint.

Shapes are those of ``[B,N,heads,dim]``, ``[B,N,heads]``, ``[M,heads,dim]``, ``[heads,dim]`` and the like: numbers, "B",
and the name of one launch parameter for what counts tokens. The last dim is a number. Sources are aligned at their last
dims; where a source has 1, or no dim, and the result has more, it is broadcast.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from sparsec.scalar.derivative import derivative
from sparsec.scalar.expr import Expr, var
from sparsec.scalar.walk import variables

Shape = tuple[int | str, ...]


class Row(NamedTuple):
    """A row function and, where it chooses, how many elements."""

    fn: str = "none"
    top: int = 0


@dataclass(frozen=True, slots=True)
class MapSource:
    """A tensor that a map reads.

    Attributes:
        row: none, l2norm (x · rsqrt(Σx² + 1e-6)), softmax, or chosen (1 at the ``top`` largest), over the tensor's own
            last dim.
        top: where it is not 0, a softmax is over the ``top`` largest elements alone, ties to the lower index.
        lifted: whether the last dim, 1, is not one of the tensor's own: a number per token and head for rows of others.
    """

    name: str
    dtype: str
    shape: Shape
    row: str = "none"
    lifted: bool = False
    top: int = 0

    @property
    def stored(self) -> Shape:
        """The shape in memory."""
        return self.shape[:-1] if self.lifted else self.shape


@dataclass(frozen=True, slots=True)
class Map:
    """out = fn of x0, x1, …, in fp32 and rounded once; x_k is the row function of the k-th source.

    Attributes:
        fn: over x0, x1, …, which are the sources in order; all of them are read.
    """

    name: str
    sources: tuple[MapSource, ...]
    out: str
    shape: Shape
    dtype: str
    fn: Expr


@dataclass(frozen=True, slots=True)
class MapGrad:
    """The gradients of a map's sources, each shaped like its source: sums over what was broadcast, in a fixed order.

    Attributes:
        grad: the gradient of the result.
        grads: (buffer, dtype) per source of ``forward``; None where it is not asked for.
    """

    name: str
    forward: Map
    grad: str
    grad_dtype: str
    grads: tuple[tuple[str, str] | None, ...]


def symbol(number: int) -> Expr:
    """The variable of a source."""
    return var(f"x{number}", "float")


def summed(forward: Map, number: int) -> frozenset[int]:
    """The dims of the result, its last one left out, that the gradient of a source is summed over."""
    shape = forward.sources[number].shape
    ahead = len(forward.shape) - len(shape)
    missing = range(min(ahead, len(forward.shape) - 1))
    ones = (d for d in range(ahead, len(forward.shape) - 1) if shape[d - ahead] == 1 != forward.shape[d])
    return frozenset((*missing, *ones))


def needed(spec: MapGrad) -> list[MapSource]:
    """The sources that the adjoint reads: those that a slope or a row function depends on."""
    forward, asked = spec.forward, [k for k, g in enumerate(spec.grads) if g is not None]
    read = {name for k in asked for name in variables(derivative(forward.fn, symbol(k)))}
    own = [k for k in asked if forward.sources[k].row != "none"]
    return [s for k, s in enumerate(forward.sources) if f"x{k}" in read or k in own]
