"""What each pass does, as text: the graph before, an arrow, the graph after."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from sparsec.frontends.text import parse
from sparsec.ir.variant import Variant
from sparsec.passes.canonicalise import canonicalise
from sparsec.passes.fuse_maps import fuse_maps
from sparsec.passes.pipeline import Pass, run
from sparsec.passes.selections import normalise_selections
from sparsec.passes.shared_lists import shared_lists_to_masks
from sparsec.passes.simplify import simplify

INPUTS = "q: [B,TQ,H,D], k: [B,TK,HKV,D], v: [B,TK,HKV,DV]"
CASES: dict[str, tuple[Pass, str]] = {
    "nested merges": (
        canonicalise,
        """a = attend(q, m, mask(m) {where = j < 2})
        b = attend(q, m, mask(m) {where = (j > 2) & (j <= i)})
        c = attend(q, m, mask(m) {where = j == 2})
        o = merge(merge(merge(a, b) {fn = lse}, c) {fn = lse}) {fn = lse}""",
    ),
    "chains of maps": (
        fuse_maps,
        """a = map(q) {fn = tanh(x0)}
        b = map(q, a) {fn = x0 + x1}
        m2 = tokens(map(map(k) {row = l2norm}) {fn = x0 * 2.0}, v)
        u = map(q) {row = l2norm}
        o = attend(map(b, a, u) {fn = x0 * x1 * x2}, m2, mask(m2) {where = j <= i})""",
    ),
    "several masks": (
        canonicalise,
        """causal = mask(m) {where = j <= i}
        o = attend(q, m, causal, mask(m) {where = True}, mask(m) {where = i - j < 64})""",
    ),
    "disjoint parts": (
        simplify,
        """near = mask(m) {where = (j <= i) & (i - j < 512)}
        sinks = mask(m) {where = (i - j >= 512) & (j < 4)}
        o = merge(attend(q, m, near), attend(q, m, sinks)) {fn = lse}""",
    ),
    "zero sink": (
        simplify,
        """logits = map(s) {fn = 0.0}
        o = attend(q, m, mask(m) {where = j <= i}, sink = logits) {sink = given}""",
    ),
    "one token windows": (
        simplify,
        """t = topk(score(q, summary(m) {size = 1, stride = 1})) {k = 3, unit = token, scope = head}
        o = attend(q, m, t)""",
    ),
    "shared lists": (
        shared_lists_to_masks,
        """s = reduce(score(q, summary(m) {size = 64, stride = 64})) {over = heads, op = mean}
        t = topk(reduce(s) {over = queries, op = max}) {k = 3, size = 64, scope = query_set}
        o = attend(q, m, t)""",
    ),
    "selections": (
        normalise_selections,
        """s = reduce(score(q, summary(m) {size = 64, stride = 64})) {over = group}
        t = topk(s) {k = 8, size = 64, eligible = c * 64 <= i, forced = (c < 1) & (c * 64 <= i), order = newest}
        u = topk(s) {k = 4, size = 64, eligible = True, forced = False, order = newest}
        w = weights(s, t)
        x = weights(s, u) {fn = stick}
        o = merge(attend(q, m, t, weights = w) {per = chunk}, attend(q, m, u, weights = x) {per = chunk}) {fn = sum}""",
    ),
}


def declare(body: str) -> Variant:
    """A variant over one memory of chunks."""
    inputs = f"{INPUTS}, s: [H]" if "map(s)" in body else INPUTS
    return parse(f"variant x({inputs}) {{\n m = tokens(k, v) {{chunk = 64}}\n{body}\n return o\n}}")


@pytest.mark.parametrize("case", CASES)
def test_pass(case: str, golden: Callable[[str], None]) -> None:
    step, body = CASES[case]
    before = declare(body)
    golden(f"{before.text()}\n-> {step.__name__}\n\n{run(before, (step,)).text()}")
