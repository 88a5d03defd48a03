"""Log-linear attention by flash-linear-attention's name."""

from __future__ import annotations

from functools import cache
from typing import Any

from torch import Tensor

from sparsec.compat.fla.attention import rowed
from sparsec.compat.fla.options import checked, refuse
from sparsec.compat.fla.run import scaled
from sparsec.frontends.recurrent import keys, log_decays, queries, values
from sparsec.ir import build as lang
from sparsec.ir.build_state import recall, state, write
from sparsec.ir.error import InputError
from sparsec.ir.variant import Variant, variant
from sparsec.runtime.compiled import Compiled, compile


def declare(levels: int, scale: float) -> Variant:
    """Inputs q, k, v, g and the levels' weights lam, as of the preset ``log_linear``."""
    written = write(state(parts=levels, schedule="fenwick"), keys(), values(), decay=log_decays())
    weights = lang.input("lam", f"B T H {levels} float32")
    return variant("log_linear", recall(queries(), written, level_gate=weights, scale=scale))


@cache
def _compiled(levels: int, scale: float, device: str) -> Compiled:
    return compile(declare(levels, scale), target=device)


@checked
def chunk_log_linear_attn(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, level_scales: Tensor, initial_state: Any = None,
    output_final_state: bool = False, cu_seqlens: Tensor | None = None, scale: float | None = 1.0, **options: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """Tokens s weigh level_scales ``[B,T,H,L]`` at bit_length(t xor s); heads of q and k may be shared by several of v.

    There are no states between calls; L must reach the last token.
    """
    refuse("chunk_log_linear_attn", **options)
    if initial_state is not None or output_final_state:
        rule = "levels are not carried from call to call"
        raise InputError("chunk_log_linear_attn: states", "asked for", rule, "one call, or sparsec's own decode")
    times = v.shape[2] // max(k.shape[2], 1)
    q, k = (x.repeat_interleave(times, 2) if times > 1 else x for x in (q, k))
    inputs = {"q": q, "k": k, "v": v, "g": g.float(), "lam": level_scales.float()}
    layer = _compiled(level_scales.shape[-1], scaled(scale, k), q.device.type)
    return rowed(layer, "chunk_log_linear_attn", inputs, cu_seqlens), None
