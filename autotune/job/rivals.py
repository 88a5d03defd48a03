"""What sparsec is timed beside: dense causal attention by torch, and FlexAttention where it can say the same."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from sparsec.autotune.job.flexible import FlexForm, flex_form, functions
from sparsec.ir.dims import value
from sparsec.ir.lengths import lengths
from sparsec.ir.node import Node
from sparsec.ir.op import Op
from sparsec.ir.variant import Variant
from sparsec.oracle.error import check
from sparsec.plan.plan import Plan, Refusal
from sparsec.scalar.evaluate import evaluate

Run = Callable[[], Tensor]
BLOCKS = {"cpu": (64, 128), "cuda": (128,)}
"""Sizes of FlexAttention's mask blocks that are tried; the fastest counts."""


@dataclass(frozen=True, slots=True)
class Rival:
    """A way to run something comparable.

    Attributes:
        runs: by form; each call gives ``[B,TQ,H,DV]``. Empty where there is none, and ``reason`` says why.
        extra: bytes made once and read in every call, such as the joined keys.
    """

    name: str
    runs: Mapping[str, Run]
    reason: str = ""


def dense(variant: Variant, inputs: Mapping[str, Tensor], dims: Mapping[str, int]) -> Rival:
    """Dense causal attention over the same queries, keys and values, as torch's scaled_dot_product_attention."""
    name = "dense SDPA"
    attend = next((n for n in variant.nodes if n.op is Op.ATTEND and n.src[1].op is Op.TOKENS), None)
    sources = () if attend is None else (attend.src[0], *attend.src[1].src)
    if attend is None or len(sources) < 3 or any(s.op is not Op.INPUT for s in sources):
        return Rival(name, {}, "the declaration has no attend of inputs over tokens")
    known = lengths(variant)
    queries, keys = known.query_count(dims), known.key_count(dims)
    if queries != keys:
        why = f"{queries} queries are not as many as {keys} keys, and its causal mask starts at the first key"
        return Rival(name, {}, why)
    q, k, v = (inputs[str(s["name"])].transpose(1, 2).contiguous() for s in sources)
    scale, grouped = _scale(attend, dims), q.shape[1] != k.shape[1]

    def run() -> Tensor:
        out = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=grouped)
        return out.transpose(1, 2)

    return Rival(name, {"torch": run})


def _scale(attend: Node, dims: Mapping[str, int]) -> float:
    scale = attend.expr("scale")
    return float(evaluate(scale, dims)) if scale is not None else value(attend.src[0].shape[-1], dims) ** -0.5


def flex(plan: Plan, inputs: Mapping[str, Tensor], dims: Mapping[str, int], truth: Tensor) -> Rival:
    """FlexAttention compiled for what the plan computes; keys are joined and the block mask made before the clock.

    A form whose output is not the truth is left out: it would be timed at another computation.
    """
    name = "FlexAttention"
    params = {n: int(evaluate(v, dims)) for kernel in plan.kernels for n, v in kernel.params}
    form = flex_form(plan, {**params, "q_offset": dims["q_offset"]})
    if isinstance(form, Refusal):
        return Rival(name, {}, f"cannot express it: {form.reason}")
    device = next(iter(inputs.values())).device.type
    if device == "cpu" and not any(shutil.which(found) for found in ("g++", "clang++", "c++")):
        return Rival(name, {}, "skipped: torch compiles it with a C++ compiler, and this machine has none")
    runs, reasons = {}, []
    for block in BLOCKS[device]:
        try:
            run = compiled(form, inputs, block)
            verdict = check(run(), truth, inputs[form.spec.q].dtype, "grad")
        except Exception as error:  # whatever torch.compile throws is a fact about this form
            reasons.append(f"blocks of {block}: {type(error).__name__}: {str(error).splitlines()[0][:160]}")
            continue
        if verdict:
            runs[f"blocks of {block}"] = run
        else:
            reasons.append(f"blocks of {block}: {verdict.sentence}")
    return Rival(name, runs, "; ".join(reasons) if not runs else "")


def compiled(form: FlexForm, inputs: Mapping[str, Tensor], block: int) -> Run:
    """One compiled FlexAttention call with mask blocks of this size."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    mask_mod, score_mod = functions(form, {name: inputs[name] for name in form.captures})
    q = inputs[form.spec.q].transpose(1, 2).contiguous()
    k, v = (_joined([inputs[name] for name in names], q.shape[0]) for names in (form.keys, form.values))
    mask = create_block_mask(mask_mod, None, None, q.shape[2], k.shape[2], device=q.device, BLOCK_SIZE=block)
    call = torch.compile(flex_attention, dynamic=False)
    grouped = q.shape[1] != k.shape[1]

    def run() -> Tensor:
        out: Tensor = call(q, k, v, score_mod=score_mod, block_mask=mask, scale=form.spec.scale, enable_gqa=grouped)
        return out.transpose(1, 2)

    return run


def _joined(parts: list[Tensor], batch: int) -> Tensor:
    """Keys or values ``[B,T,HKV,D]`` or ``[M,HKV,D]`` one after another as ``[B,HKV,N,D]``."""
    whole = [x if x.ndim == 4 else x.expand(batch, *x.shape) for x in parts]
    return torch.cat(whole, dim=1).transpose(1, 2).contiguous()
