"""Weights that are shares of a softmax: backward they multiply gradients of outputs; theirs is a quotient by them."""

from __future__ import annotations

import pytest
import torch

from sparsec.frontends.text import parse
from sparsec.lower.route import router_grad
from sparsec.lower.scan.chunk.parts import SEGMENTS, Chunked, segment_bounds
from sparsec.lower.scan.runs import Runs
from sparsec.plan.states.route_specs import Router, RouterGrad
from sparsec.plan.states.scan_specs import Operand, Route, Scan, ScanGrad, Writes
from sparsec.runtime.compiled import Compiled, compile
from sparsec.testing.inputs.recurrent import HEAD, draw
from sparsec.testing.whole.trained import wrong_on
from sparsec.tile import build as tile
from sparsec.tile.interpreter import interpret
from sparsec.tile.language import Tensor
from sparsec.tile.schedule import Schedule

SIZES = {"B": 2, "T": 75, "H": 2, "HKV": 2, "D": 16, "DV": 24, "DX": 40}
TEXT = """variant shares({head}, g: {decay}, y: [B,T,1,DX], w: [4,1,DX]) {{
  scores = score(y, w) {{fn = router}}
  chosen = topk(scores) {{k = {k}, unit = part, scope = token, selector_gradient = through_weights}}
  e = weights(scores, chosen) {{fn = softmax, renormalise = false}}
  s = write(state() {{parts = 4}}, k, v, beta=beta, decay=g, route=chosen, weight=e) {{{rule}}}
  return recall(q, s) {{renormalise = false, scale = rsqrt(D)}}
}}"""
SCALAR, KEY = "[B,T,HKV] float32", "[B,T,HKV,D] float32"
RULES = {
    "delta": (SCALAR, 1, "rule = delta, decay_kind = scalar"),
    "delta, two parts": (SCALAR, 2, "rule = delta, decay_kind = scalar"),
    "additive": (SCALAR, 1, "decay_kind = scalar"),
    "fading channels, two parts": (KEY, 2, "decay_kind = key"),
}


def made(which: str, splits: int = 3) -> Compiled:
    decay, k, rule = RULES[which]
    found = compile(parse(TEXT.format(head=HEAD, decay=decay, k=k, rule=rule)), target="interpreter")
    x = draw(found.variant, SIZES)
    dims, dtype = found.bind(x, None)
    halves = found.training.joint(dims, dtype, tuple(x)).split
    scans = [
        k for plan in (halves.forward, halves.backward) for k in plan.kernels if isinstance(k.spec, Scan | ScanGrad)
    ]
    found.schedules = {k.name: Schedule(order="chunk", rows=16, value_block=16, splits=splits) for k in scans}
    return found


EXACT = [(which, "float32") for which in RULES if "fading" not in which]
"""Where key channels fade by -60 at once, chunks of fp32 are 1.2e-5 off, more than its bound."""


@pytest.mark.parametrize(("which", "dtype"), [*EXACT, *((which, "bfloat16") for which in RULES)])
def test_outputs_and_gradients_by_chunks(which: str, dtype: str) -> None:
    call = made(which)
    assert wrong_on(call, draw(call.variant, SIZES, getattr(torch, dtype)), dtype) == []


@pytest.mark.parametrize("which", ["delta, two parts", "fading channels, two parts"])
def test_a_weight_of_zero_has_no_gradient_and_spoils_none(which: str) -> None:
    """A score so far below the best that its share is 0: a quotient by it would be no number."""
    call = made(which)
    x = draw(call.variant, SIZES, torch.bfloat16)
    x["w"] = torch.eye(4, SIZES["DX"], dtype=torch.bfloat16)[:, None]
    far = torch.arange(SIZES["T"])[:, None, None] % 3 == 0
    order = torch.rand((2, SIZES["T"], 1, 4), generator=torch.Generator().manual_seed(1)).argsort(-1)
    x["y"] = (order * torch.where(far, 2048.0, 0.5)).repeat(1, 1, 1, SIZES["DX"] // 4).bfloat16()
    shares = torch.softmax(SIZES["DX"] ** -0.5 * x["y"][:, ::3, 0, :4].float(), -1).topk(2, -1).values
    assert bool((shares[..., 1] == 0).all())
    assert wrong_on(call, x, "bfloat16") == []


def test_segments_are_of_chunks_that_hold_tokens() -> None:
    """Runs of 5 parts and of no part, 16 to a chunk: 3, 1, 1, 2, 1 and then 1 chunk or none."""
    route = Route("ids", 5, 1)
    runs = Runs("r", route, "N", 16, cut=True)
    writes = Writes(Operand("k", "float32"), Operand("v", "float32"), heads=1, rows=16, cols=16, route=route)
    own = Chunked("r", writes, Schedule(rows=16, splits=4), runs)
    with tile.Builder() as builder:
        segment = tile.program_id(0)
        out = Tensor("out", "int32", (SEGMENTS, 2))
        for n, value in enumerate(segment_bounds(own, segment, tile.const(0), tile.const(0))):
            tile.store(out, segment, n, value=value)
        program = own.program(builder, "bounds", [runs.spans, out], (tile.param(SEGMENTS),))
    for rest, expected in ((0, [[0, 2], [2, 4], [4, 6], [6, 8]]), (7, [[0, 3], [3, 6], [6, 9], [9, 9]])):
        spans = torch.tensor([[0, 40], [48, 0], [64, 9], [80, 17], [112, 3], [128, rest]], dtype=torch.int32)
        found = torch.full((4, 2), -1, dtype=torch.int32)
        given = {name: 40 for name, _ in program.params} | {SEGMENTS: 4}
        interpret(program, {"r_spans": spans[None, None], "out": found}, given)
        assert found.tolist() == expected


@pytest.mark.parametrize(("parts", "dim"), [(4, 96), (32, 130)])
def test_gradients_of_rows_in_bf16_are_as_exact_as_fp32(parts: int, dim: int) -> None:
    """Slopes are two halves: one would be 1.7e-3 off."""
    tokens, random = 70, torch.Generator().manual_seed(0)
    own = Router("r", "x", "w", "ids", "shares", "e", parts, dim, 1, 0.7, "bfloat16", "bfloat16")
    spec = RouterGrad("g", own, "de", None, None, "dx", "dw", "float32", "float32")
    x, w = (torch.randn(*s, generator=random).bfloat16() for s in ((1, tokens, 1, dim), (parts, 1, dim)))
    shares = torch.softmax(torch.randn(1, tokens, 1, parts, generator=random), -1)
    given = {"x": x, "w": w, "shares": shares, "ids": shares.argmax(-1, keepdim=True).int()}
    given |= {"de": torch.randn(1, tokens, 1, 1, generator=random)}
    buffers = given | {"dx": torch.zeros(1, tokens, 1, dim), "dw": torch.zeros(parts, 1, dim)}
    buffers |= {"g_scores": torch.zeros(1, tokens, parts), "g_shares": torch.zeros(1, 1, parts, dim)}
    params = {"B": 1, "N": tokens, "TQ": tokens, "TK": tokens, "q_offset": 0, "ROUTE_STRETCHES": 1}
    for step in router_grad.lower(spec, Schedule(rows=32)).steps:
        interpret(step.program, buffers, params)
    chosen = torch.nn.functional.one_hot(given["ids"].long()[..., 0], parts).double()
    own_share = (shares.double() * chosen).sum(-1, keepdim=True)
    slope = 0.7 * given["de"].double() * own_share * (chosen - shares.double())
    exact = {"dx": slope[:, :, 0] @ w[:, 0].double(), "dw": slope[0, :, 0].T @ x[0, :, 0].double()}
    for name, right in exact.items():
        found = buffers[name].double().reshape(right.shape)
        assert float((found - right).norm()) < 2e-5 * float(right.norm()), name
