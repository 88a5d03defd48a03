"""Inputs of packed calls from those of documents: put together along the dimension that counts their tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING

from sparsec.ir.error import InputError
from sparsec.plan.packed.layout import Packing, layout
from sparsec.runtime.inputs import inputs
from sparsec.runtime.packed.batch import unbatched
from sparsec.scalar.expr import Expr

if TYPE_CHECKING:
    from torch import Tensor

    from sparsec.runtime.compiled import Compiled


def together(
    shapes: Mapping[str, Sequence[Expr]], packing: Packing, documents: Sequence[Mapping[str, Tensor]]
) -> dict[str, Tensor]:
    """Dense inputs of documents, each with a batch of one -> packed ones, still with a batch of one.

    What documents share is taken from the first of them.
    """
    import torch

    found = {}
    for name, shape in shapes.items():
        at, held = layout(shape, packing), [document[name] for document in documents]
        along = None if at is None else at.batch if at.along is None else at.along
        found[name] = held[0] if along is None else torch.cat(held, along)
    return found


def ends(sizes: Sequence[int], device: object) -> Tensor:
    """``cu_seqlens`` of documents of these lengths."""
    import torch

    return torch.tensor([0, *accumulate(sizes)], dtype=torch.int32, device=str(device))


def packed_inputs(
    compiled: Compiled,
    sizes: Sequence[int],
    dims: Mapping[str, int],
    dtype: str,
    seed: int = 0,
    device: str | None = None,
) -> dict[str, Tensor]:
    """Random inputs of a packed call with ``cu_seqlens``; queries are as many as keys in every document.

    Args:
        sizes: the tokens of each document.
        dims: heads and head dims; lengths and the batch among them are not read.
        device: None for the target's.
    Raises:
        InputError: a length below one, or none.
        PlanError: a declaration that cannot be packed.
    """
    if not sizes or min(sizes) < 1:
        raise InputError("documents", str(list(sizes)), "each has a token or more", "such as 4096,512,100")
    face, where = compiled.packed.face, device or compiled.target.device
    lengths = {*compiled.lengths.names, *(name for name, _ in face.packing.dims), "B", "q_offset"}
    other = {name: size for name, size in dims.items() if name not in lengths}
    parts = []
    for number, size in enumerate(sizes):
        own = {**other, "T": size} | ({"B": 1} if "B" in dims else {})
        parts.append(inputs(compiled.variant, dtype=dtype, device=where, seed=seed + number, **own))
    made = together(face.shapes, face.packing, parts)
    packed = {name: unbatched(x, face.layouts[name]) for name, x in made.items()}
    return packed | {"cu_seqlens": ends(sizes, where)}
