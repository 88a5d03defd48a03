"""What a packed call means: every document alone, one after the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from sparsec.ir.dims import fixed
from sparsec.ir.lengths import lengths
from sparsec.ir.variant import Variant
from sparsec.oracle.form import FormName
from sparsec.oracle.truth import oracle
from sparsec.scalar.evaluate import evaluate
from sparsec.scalar.expr import Expr, var
from sparsec.scalar.walk import variables


def packed_oracle(
    variant: Variant,
    inputs: Mapping[str, Tensor],
    cu_seqlens: Sequence[int],
    cu_seqlens_k: Sequence[int] | None = None,
    form: FormName = "vector",
    q_offset: Sequence[int] | None = None,
) -> tuple[Tensor, ...]:
    """The outputs in fp64 of packed inputs ``[tokens, …]``, each document alone; last states are one per document.

    Args:
        inputs: packed along the dim that differs by document, without a batch; what has neither is the same for all.
        cu_seqlens: 0, then the end of every document's queries; ``cu_seqlens_k`` of its keys where they differ.
        q_offset: the position of each document's first query; None lets queries end with their keys.
    """
    sizes = _sizes(variant, cu_seqlens, cu_seqlens if cu_seqlens_k is None else cu_seqlens_k)
    names = {name for size in sizes for name in size}
    starts: dict[str, int] = dict.fromkeys(inputs, 0)
    made = []
    for n, size in enumerate(sizes):
        document = {name: _cut(variant, name, x, n, size, starts) for name, x in inputs.items()}
        offset = None if q_offset is None else int(q_offset[n])
        outputs = oracle(variant, document, form=form, q_offset=offset)
        made.append(outputs if isinstance(outputs, tuple) else (outputs,))
    per_token = [any(variables(dim).keys() & names for dim in x.shape) for x in variant.outputs]
    every = zip(per_token, zip(*made, strict=True), strict=True)
    return tuple(torch.cat([x.squeeze(0) for x in parts] if rows else parts) for rows, parts in every)


def _sizes(variant: Variant, ends: Sequence[int], key_ends: Sequence[int]) -> list[dict[str, int]]:
    """The dims that differ by document, of each."""
    own, others = lengths(variant), fixed(variant)
    found = []
    for n in range(len(ends) - 1):
        size = {str(own.keys): key_ends[n + 1] - key_ends[n], str(own.queries): ends[n + 1] - ends[n]}
        for name, expr in others.items():
            if name not in size and variables(expr).keys() & size.keys():
                size[name] = int(evaluate(expr, size))
        found.append(size)
    return found


def _cut(variant: Variant, name: str, x: Tensor, n: int, size: Mapping[str, int], starts: dict[str, int]) -> Tensor:
    """One document's part of an input, with a batch of one."""
    shape = variant.inputs[name].shape
    along = [d for d, dim in enumerate(shape) if variables(dim).keys() & size.keys()]
    if not along:
        return x.narrow(_batch(shape), n, 1) if var("B") in shape else x
    whole, length = x.unsqueeze(_batch(shape)), int(evaluate(shape[along[0]], size))
    start, starts[name] = starts[name], starts[name] + length
    return whole.narrow(along[0], start, length)


def _batch(shape: Sequence[Expr]) -> int:
    return next(d for d, dim in enumerate(shape) if dim is var("B"))
