"""fla's token recurrences from given states: the public calls, on raw inputs as they are."""

import importlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from torch import Tensor

Call = Callable[[], object]

_CALLS: dict[str, Callable[..., Any]] = {
    "gdn": lambda ops, x, more: ops.fused_recurrent_gated_delta_rule(
        x["q"], x["k"], x["v"], g=x["g"], beta=x["beta"], **more
    ),
    "kda": lambda ops, x, more: ops.fused_recurrent_kda(x["q"], x["k"], x["v"], x["g"], x["beta"], **more),
    "retnet": lambda ops, x, more: ops.fused_recurrent_simple_gla(x["q"], x["k"], x["v"], x["g"], **more),
    "rwkv7": lambda ops, x, more: ops.fused_recurrent_rwkv7(*(x[n] for n in ("q", "g", "k", "v", "a", "b")), **more),
}
"""By sparsec's preset."""


def peer(design: str, x: dict[str, Tensor], states: Sequence[Tensor]) -> list[Call]:
    """A step from each of some states ``[B,1,H,D,DV]``; none where fla is not here or has no such call."""
    call = _CALLS.get(design)
    try:
        ops = importlib.import_module("fla.ops")
    except ImportError:
        return []
    if call is None:
        return []
    every = [{"initial_state": m[:, 0], "output_final_state": True} for m in states]
    return [partial(call, ops, x, more) for more in every]
