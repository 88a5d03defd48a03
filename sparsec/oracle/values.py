"""What a node is worth: besides plain tensors, memories, selections and outputs with their log-sum-exp."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sparsec.ir.node import Node
from sparsec.oracle.states import Written


class OracleError(ValueError):
    """Inputs that do not fit the variant, or something that the oracle has no meaning for."""


@dataclass(frozen=True, slots=True)
class Memory:
    """Keys ``[B,N,HKV,D]`` and values ``[B,N,HKV,DV]`` or None, both fp64."""

    k: Tensor
    v: Tensor | None


@dataclass(frozen=True, slots=True)
class Mask:
    """A selection by predicate: given the number of heads, bool ``[B,R,H,N]``."""

    visible: Callable[[int], Tensor]


@dataclass(frozen=True, slots=True)
class Chosen:
    """A selection by list.

    Attributes:
        ids: int64 ``[B,TQ,HS,K]``, −1 where there is nothing.
        size: tokens per chosen unit.
        score: what they were ranked by, fp64 ``[B,TQ,HS,N]``; None for given indices.
        eligible: bool ``[B,TQ,HS,N]``; None for given indices.
        forced: bool ``[B,TQ,HS,N]``, within the eligible; None for given indices.
        passed: factors of 1 ``[B,TQ,HS,K]`` on what the chosen let through, whose slopes are those of the scores; None
            unless the choice is straight-through.
    """

    ids: Tensor
    size: int
    score: Tensor | None = None
    eligible: Tensor | None = None
    forced: Tensor | None = None
    passed: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Output:
    """o ``[B,TQ,H,DV]`` and, for a joint softmax, its log-sum-exp ``[B,TQ,H]``."""

    o: Tensor
    lse: Tensor | None


@dataclass(frozen=True, slots=True)
class Bank:
    """Matrix states before the first token, fp64 ``[B,N,H,D,DV]``."""

    m: Tensor


@dataclass(frozen=True, slots=True)
class HandedBack:
    """What one reader hands back to the states that it reads.

    Attributes:
        reader: the node that reads them.
        place: of the states among its sources.
        grad: of its result, fp64.
    """

    reader: Node
    place: int
    grad: Tensor


Value = Tensor | Memory | Mask | Chosen | Output | Bank | Written | HandedBack


def plain(value: Value) -> Tensor:
    """The tensor of a value that is one; of written states, those after the last token."""
    if isinstance(value, Output | Written):
        return value.o if isinstance(value, Output) else value.last
    assert isinstance(value, Tensor), type(value)
    return value


def take(value: Value, index: Tensor) -> Value:
    """Some query rows of a value; what has a single row serves every query."""
    if isinstance(value, Tensor):
        return value if value.ndim < 2 or value.shape[1] == 1 else value.index_select(1, index)
    if isinstance(value, Mask):
        return Mask(lambda heads: value.visible(heads).index_select(1, index))
    assert isinstance(value, Output | Chosen), "memories and states have no query rows"
    return _each_field(value, lambda parts: _rows(parts[0], index), [value])


def _rows(x: Tensor, index: Tensor) -> Tensor:
    """Rows of dimension 1; a single row is every row."""
    return x.expand(x.shape[0], index.shape[0], *x.shape[2:]) if x.shape[1] == 1 else x.index_select(1, index)


def join(pieces: Sequence[Value]) -> Value:
    """Values of consecutive rows as one."""
    first = pieces[0]
    if isinstance(first, Tensor):
        return torch.cat([plain(piece) for piece in pieces], dim=1)
    if isinstance(first, Mask):
        masks = [piece for piece in pieces if isinstance(piece, Mask)]
        return Mask(lambda heads: torch.cat([mask.visible(heads) for mask in masks], dim=1))
    assert isinstance(first, Output | Chosen)
    return _each_field(first, lambda parts: torch.cat(parts, dim=1), pieces)


def _each_field(
    like: Output | Chosen, act: Callable[[list[Tensor]], Tensor], values: Sequence[Value]
) -> Output | Chosen:
    """A value of the same type whose tensors are those of `values`, field by field, put through a function."""

    def field(name: str) -> Tensor | None:
        parts = [getattr(value, name) for value in values]
        return None if parts[0] is None else act(parts)

    if isinstance(like, Output):
        return Output(act([plain(value) for value in values]), field("lse"))
    ids = field("ids")
    assert ids is not None
    return Chosen(ids, like.size, field("score"), field("eligible"), field("forced"), field("passed"))
