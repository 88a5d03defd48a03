"""What the plan knows of lists that kernels read."""

from __future__ import annotations

import re
from typing import Any

import pytest

from sparsec.frontends.activations import keys_values, queries
from sparsec.frontends.preset import preset
from sparsec.frontends.text import parse
from sparsec.ir import build as lang
from sparsec.ir.node import Node
from sparsec.ir.variant import Variant, variant
from sparsec.plan.plan import PlanError
from sparsec.plan.specs import GatheredAttention
from sparsec.runtime.compiled import compile

DIMS = {"H": 4, "HKV": 2, "D": 32, "DV": 32}


def own_first(declared: Node | Variant) -> bool:
    """What the one kernel of gathered attention is told."""
    made = declared if isinstance(declared, Variant) else variant("lists", declared)
    plan = compile(made, target="interpreter").plan(DIMS, "float32")
    (spec,) = [k.spec for k in plan.kernels if isinstance(k.spec, GatheredAttention)]
    return spec.own_first


def test_mobas_own_block_comes_first() -> None:
    assert own_first(preset("moba", block=32, k=3)) and own_first(preset("moba", block=64, k=1))


@pytest.mark.parametrize(
    "changed",
    [
        {"forced": None}, {"forced": "c == 0"}, {"forced": "(c == i // 32) | (c == 0)"}, {"forced": "c == i // 16"},
        {"eligible": None}, {"eligible": "complete_past"}, {"count_forced": False, "slots": 4},
    ],
    ids=str,
)  # fmt: skip
def test_other_lists_may_begin_with_any(changed: dict[str, Any]) -> None:
    chosen = {"eligible": "started", "forced": "c == i // 32", "k": 3, "scope": "head", **changed}
    q, memory = queries(), keys_values(chunk=32)
    scores = lang.score(q, lang.summary(memory, size=32, stride=32), detach=True)
    assert not own_first(lang.attend(q, memory, lang.topk(scores, size=32, **chosen)))
    chosen |= {"eligible": "started", "forced": "c == i // 32", "count_forced": True, "slots": None}
    assert own_first(lang.attend(q, memory, lang.topk(scores, size=32, **chosen)))


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (
            """marks = score(q, summary(m) {size = 16, stride = 8})
            pooled = reduce(marks) {over = overlap, size = 16, stride = 8, block = 16}
            c = topk(reduce(pooled) {over = group, op = mean}) {k = 2, size = 16}
            return attend(q, m, c)""",
            "found over = overlap. Fix: reduce over the group first and pool what that gives",
        ),
        (
            """logits = score(x, w) {fn = router, scale = 1.0}
            route = topk(logits) {k = 2, unit = part, scope = token}
            bank = write(state() {parts = 4}, k, v, route=route) {rule = additive}
            return recall(q, bank)""",
            "`P` has to be a number when kernels are built, and `P` is a length of the call. Fix: write the number",
        ),
        (
            "return attend(q, m, mask(m) {where = j <= i}) {bias = score % 3.0}",
            "`score % 3.0`: // and % have a",
        ),
        (
            """n = bias(score(q, summary(m) {size = 16, stride = 16})) {fn = score // 0.5}
            return attend(q, m, topk(n) {k = 2, size = 16, scope = head})""",
            "`score // 0.5`: // and % have a kernel of whole numbers only; the oracle has the others. Fix: ",
        ),
    ],
    ids=["the group last", "parts that the call counts", "rests of scores", "scores rounded down"],
)
def test_refusals_say_what_to_write(body: str, said: str) -> None:
    inputs = "q: [B, T, H, D], k: [B, T, HKV, D], v: [B, T, HKV, DV], x: [B, T, 1, 8], w: [P, 1, 8]"
    given = inputs if "router" in body else inputs.split(", x:")[0]
    made = parse(f"variant odd({given}) {{\nm = tokens(k, v) {{chunk = 16}}\n{body}\n}}")
    with pytest.raises(PlanError, match=re.escape(said)):
        compile(made, target="interpreter").plan({**DIMS, "H": 2}, "float32")
