"""Outputs and gradients of packed documents, held to the oracle of every document alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from sparsec.ir.variant import Variant
from sparsec.oracle import check
from sparsec.oracle.packed import packed_oracle
from sparsec.runtime.compiled import Compiled
from sparsec.testing.whole.packed import PackedCase, case_of, cotangents_like, floats, gradients, results
from sparsec.testing.whole.trained import DIRECT


def wrong_documents(layer: Compiled, case: PackedCase, dtype: str, learned: Sequence[str] | None = None) -> list[str]:
    """What is wrong with a packed call, in sentences: outputs, and gradients of what is ``learned``: of all floats."""
    learned = floats(layer.variant) if learned is None else learned
    outputs = results(layer, **case.packed, **case.ends)
    pulls = cotangents_like(outputs)
    exact, truth = _truth(layer.variant, case, learned, pulls)
    found = gradients(layer, case, learned, pulls)
    sentences = [f"output {n} is {v.sentence}" for n, (o, e) in enumerate(zip(outputs, exact, strict=True))
                 if not (v := check(o[None], e[None], dtype))]  # fmt: skip
    for name, right in truth.items():
        mine = found[name]
        mine = torch.zeros_like(right) if mine is None else mine.to(right.dtype)
        verdict = check(mine[None], right[None], dtype, "o" if name in DIRECT else "grad")
        if not verdict:
            sentences.append(f"gradient of {name} is {verdict.sentence}")
    return sentences


def drawn_documents(variant: Variant, documents: list[dict[str, Tensor]]) -> PackedCase:
    """A packed call of these documents, each with a batch of one; k has their lengths."""
    sizes = [x["k"].shape[1] for x in documents]
    return case_of(variant, documents, sizes, sizes)


def _truth(
    variant: Variant, case: PackedCase, learned: Sequence[str], pulls: Sequence[Tensor]
) -> tuple[tuple[Tensor, ...], Mapping[str, Tensor]]:
    """Outputs and gradients in fp64."""
    leaves = {n: x.detach().double().requires_grad_() if n in learned else x for n, x in case.packed.items()}
    outputs = packed_oracle(variant, leaves, case.ends["cu_seqlens"].tolist())
    every = [leaves[name] for name in learned]
    grads = torch.autograd.grad(list(outputs), every, [g.double() for g in pulls], allow_unused=True)
    made = {n: torch.zeros_like(x) if g is None else g for n, x, g in zip(learned, every, grads, strict=True)}
    return outputs, made
