"""Arguments by place, in flash-linear-attention's order."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, normalize

from sparsec import InputError
from sparsec.compat import fla

ENDS = [0, 5, 6, 19]


def draw(*names: str) -> dict[str, Tensor]:
    """q, k, v and others of 19 tokens and two heads; keys of length 1, log-decays, rates."""
    generator = torch.Generator().manual_seed(0)
    trailing = {"v": (12,), "g": (), "beta": ()}
    found = {n: torch.randn(1, 19, 2, *trailing.get(n, (8,)), generator=generator) for n in ("q", "k", "v", *names)}
    found |= {n: normalize(x, dim=-1) for n, x in found.items() if n in "kab"}
    found |= {n: logsigmoid(x) for n, x in found.items() if n in ("g", "gk")}
    return found | {n: x.sigmoid() for n, x in found.items() if n == "beta"}


def test_rates_where_key_decays_go_are_refused() -> None:
    """fla's order is g, gk, gv, beta; its own example gives beta after g."""
    x = draw("g", "beta")
    q, k, v, g, beta = (x[n] for n in ("q", "k", "v", "g", "beta"))
    with pytest.raises(InputError, match=r"gk: shape \(1, 19, 2\).*gk \[B,T,HV,K\].*by name"):
        fla.fused_recurrent_gated_delta_rule(q, k, v, g, beta)
    with pytest.raises(InputError, match=r"g: shape \(1, 19, 2, 1\)"):
        fla.fused_recurrent_gated_delta_rule(q, k, v, g[..., None])
    done, _ = fla.fused_recurrent_gated_delta_rule(q, k, v, g, None, None, beta)
    assert torch.equal(done, fla.fused_recurrent_gated_delta_rule(q, k, v, g, beta=beta)[0])


# Each: the inputs beside q, k and v, arguments by place, and the same by name.
PLACED: dict[str, tuple[tuple[str, ...], tuple[Any, ...], dict[str, Any]]] = {
    "fused_recurrent_simple_gla": (("g",), (None, None, None, False, True), {"reverse": True}),
    "fused_chunk_simple_gla": (("g",), (None, None, None, False, torch.tensor(ENDS)), {"cu_seqlens": ENDS}),
    "fused_recurrent_retention": ((), (None, None, False, True), {"reverse": True}),
    "fused_recurrent_dplr_delta_rule": (("a", "b", "gk"), (None, None, False, True), {"reverse": True}),
    "fused_recurrent_gated_delta_rule": (
        ("g",),
        (*[None] * 5, False, True, *[False, None, None, False, False, False], torch.tensor(ENDS)),
        {"use_qk_l2norm_in_kernel": True, "cu_seqlens": ENDS},
    ),
    "fused_recurrent_kda": (
        ("gk", "beta"),
        (*[None] * 4, False, True, False, True),
        {"use_qk_l2norm_in_kernel": True, "use_beta_sigmoid_in_kernel": True},
    ),
}


@pytest.mark.parametrize("op", PLACED)
def test_arguments_by_place_go_in_the_order_of_fla(op: str) -> None:
    names, places, options = PLACED[op]
    x = draw(*names)
    given = [x[n] for n in ("q", "k", "v", *names)]
    options = {n: torch.tensor(y) if n == "cu_seqlens" else y for n, y in options.items()}
    named = dict(zip(("g" if n == "gk" and "dplr" not in op else n for n in names), given[3:], strict=True))
    found, right = getattr(fla, op)(*given, *places)[0], getattr(fla, op)(*given[:3], **named, **options)[0]
    assert torch.equal(found, right)
    assert not torch.equal(found, getattr(fla, op)(*given[:3], **named)[0])


def test_arguments_are_given_once() -> None:
    x = draw()
    q, k, v = (x[n] for n in ("q", "k", "v"))
    with pytest.raises(InputError, match="reverse: given twice"):
        fla.fused_recurrent_retention(q, k, v, None, None, False, True, reverse=True)
    with pytest.raises(InputError, match="arguments: 10 of them: 9 go by place"):
        fla.fused_recurrent_retention(q, k, v, None, None, False, True, False, None, 3)
