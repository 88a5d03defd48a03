"""Gradients of a compiled variant through torch's autograd, held to autograd through the oracle.

In half precision the oracle takes the sides of clips that rounding decides from the kernels, see ``clips``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from sparsec.ir.variant import Variant
from sparsec.oracle import check, oracle
from sparsec.runtime.compiled import Compiled, compile
from sparsec.testing.whole.case import WholeCase, on
from sparsec.testing.whole.chain import as_tuple
from sparsec.testing.whole.clips import MARGIN, Sides, clipped, sides, told

DIRECT = ("v",)
"""Inputs whose gradients are held to the bounds of outputs."""


def wrong_gradients(case: WholeCase, target: str, device: str = "cpu") -> list[str]:
    """What is wrong with a case's output and gradients on a target, in sentences; empty if nothing is."""
    compiled = on(case.variant, target)
    return wrong_on(compiled, case.inputs(device), case.dtype, case.lengths[2])


def wrong_on(
    compiled: Compiled,
    inputs: Mapping[str, Tensor],
    dtype: str,
    q_offset: int | None = None,
    learned: Sequence[str] | None = None,
) -> list[str]:
    """The same for inputs of one's own, by gradients of those that are ``learned``: of all that are no integers."""
    learned = [name for name, x in inputs.items() if x.is_floating_point()] if learned is None else learned
    leaves = {name: x.detach().requires_grad_(name in learned) for name, x in inputs.items()}
    outputs = as_tuple(compiled(q_offset, **leaves))
    grads = [_noise(out, n) for n, out in enumerate(outputs)]
    found = _gradients(outputs, grads, [leaves[name] for name in learned])
    clips = _clips(compiled, inputs, outputs, dtype, q_offset)
    if clips is None:
        exact, truth = _truth(compiled.variant, inputs, learned, grads, q_offset)
    else:
        decided, given = told(compiled.variant, clips.found)
        exact, truth = clips.outputs, _truth(decided, {**inputs, **given}, learned, grads, q_offset)[1]
    said = [] if clips is None else [clips.sentence]
    sentences = [] if clips is None or clips else [*said]
    sentences += [f"output {n} is {v.sentence}" for n, (o, e) in enumerate(zip(outputs, exact, strict=True))
                 if not (v := check(o, e, dtype))]  # fmt: skip
    for name, mine, right in zip(learned, found, truth, strict=True):
        verdict = check(mine.to(right.dtype), right, dtype, "o" if name in DIRECT else "grad")
        if not verdict:
            sentences.append("; ".join([f"gradient of {name} is {verdict.sentence}", *said]))
    return sentences


def oracle_gradients(variant: Variant, inputs: Mapping[str, Tensor], weight: Tensor) -> dict[str, Tensor]:
    """The oracle's gradients of the only output, pulled at by a weight, in fp64."""
    return dict(zip(inputs, _truth(variant, inputs, [*inputs], [weight], None)[1], strict=True))


def _clips(
    compiled: Compiled, inputs: Mapping[str, Tensor], outputs: Sequence[Tensor], dtype: str, q_offset: int | None
) -> Sides | None:
    """What the kernels decide at clips, if there are any and rounding decides."""
    if dtype not in MARGIN or not clipped(compiled.variant):
        return None

    def run(variant: Variant) -> Tensor | tuple[Tensor, ...]:
        return compile(variant, compiled.target, compiled.cache_dir)(q_offset, **inputs)

    def truth(variant: Variant) -> Tensor | tuple[Tensor, ...]:
        return oracle(variant, inputs, form="vector", q_offset=q_offset)

    return sides(compiled.variant, run, truth, outputs, dtype)


def _truth(
    variant: Variant, inputs: Mapping[str, Tensor], learned: Sequence[str], grads: list[Tensor], q_offset: int | None
) -> tuple[tuple[Tensor, ...], list[Tensor]]:
    """Outputs and gradients in fp64."""
    leaves = {n: x.detach().double().requires_grad_() if n in learned else x for n, x in inputs.items()}
    outputs = as_tuple(oracle(variant, leaves, form="vector", q_offset=q_offset))
    return outputs, _gradients(outputs, [g.double() for g in grads], [leaves[name] for name in learned])


def _gradients(outputs: tuple[Tensor, ...], grads: list[Tensor], leaves: list[Tensor]) -> list[Tensor]:
    """Gradients of the leaves; zeros where nothing flows."""
    pairs = [(o, g) for o, g in zip(outputs, grads, strict=True) if o.requires_grad]
    found = torch.autograd.grad([o for o, _ in pairs], leaves, [g for _, g in pairs], allow_unused=True)
    return [torch.zeros_like(x) if g is None else g for x, g in zip(leaves, found, strict=True)]


def _noise(like: Tensor, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(77 + seed)
    return torch.randn(like.shape, generator=generator).to(like.device, like.dtype)
