"""Shapes of a plan's buffers under dims that tracing keeps symbolic."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from sparsec.ir.node import Node
from sparsec.plan.plan import Plan
from sparsec.scalar.evaluate import NUMBERS
from sparsec.scalar.expr import Expr
from sparsec.scalar.fn import Fn
from sparsec.scalar.walk import transform

_SYMBOLIC: dict[Fn, Any] = {**NUMBERS, Fn.MINIMUM: torch.sym_min, Fn.MAXIMUM: torch.sym_max}


def dims_of(parameters: Sequence[Node], tensors: Sequence[Tensor]) -> dict[str, Any]:
    """Dims by name, each from the first input that has it by itself; nothing is checked, so nothing is guarded."""
    found: dict[str, Any] = {}
    for node, x in zip(parameters, tensors, strict=True):
        for dim, size in zip(node.shape, x.shape, strict=True):
            if dim.head == "var":
                found.setdefault(str(dim.value), size)
    return found


def sizes(shape: Sequence[Expr], dims: Mapping[str, Any]) -> list[Any]:
    """A shape under dims that may be symbolic."""
    return [_size(dim, dims) for dim in shape]


def _size(dim: Expr, dims: Mapping[str, Any]) -> Any:
    def rule(x: Expr, args: tuple[Any, ...]) -> Any:
        if x.head == "const":
            return x.value
        return dims[str(x.value)] if x.head == "var" else _SYMBOLIC[x.head](*args)  # type: ignore[index]

    return transform(dim, rule)


def empties(plan: Plan, names: Iterable[str], dims: Mapping[str, Any], like: Tensor) -> list[Tensor]:
    """Buffers of a plan by name, empty, on the device of another tensor."""
    found = [plan.buffer(name) for name in names]
    return [like.new_empty(sizes(b.shape, dims), dtype=getattr(torch, b.dtype)) for b in found]
