"""The runner verifies, names the culprit and tells the observers; a pass with nothing to do gives the same graph."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sparsec.frontends.text import parse
from sparsec.ir.node import Node
from sparsec.ir.variant import Variant
from sparsec.ir.verify import VerifyError
from sparsec.passes.observers import Diffs, Times, diff
from sparsec.passes.pipeline import PIPELINE, run

PLAIN = """variant plain(q: [B,TQ,H,D], k: [B,TK,HKV,D], v: [B,TK,HKV,DV]) {
  m = tokens(k, v)
  o = attend(q, m, mask(m) {where = j <= i})
  return o
}"""


def break_the_shape(variant: Variant) -> Variant:
    """A pass with a mistake: it drops a dim."""
    o = variant.outputs[0]
    broken = Node(o.op, o.src, o.attrs, o.shape[:-1], o.kind, o.dtype)
    return replace(variant, outputs=(broken,))


def test_the_culprit_is_named() -> None:
    with pytest.raises(VerifyError, match=r"after break_the_shape: .*attend"):
        run(parse(PLAIN), (break_the_shape,))


def test_nothing_to_do_gives_the_same_nodes() -> None:
    variant = parse(PLAIN)
    assert run(variant, PIPELINE).outputs[0] is variant.outputs[0]


def test_observers_see_every_pass_after_verification() -> None:
    diffs, times = Diffs(), Times()
    run(parse(PLAIN), PIPELINE, (diffs, times))
    names = [step.__name__ for step in PIPELINE]
    assert [name for name, _ in diffs.found] == [name for name, _ in times.seconds] == names
    assert all(text == "" for _, text in diffs.found)
    with pytest.raises(VerifyError):
        run(parse(PLAIN), (break_the_shape,), (diffs,))
    assert len(diffs.found) == len(names)


def test_names_survive_and_never_collide() -> None:
    text = PLAIN.replace(
        "o = attend(q, m, mask(m) {where = j <= i})",
        """
      near = mask(m) {where = j <= i}
      o = attend(q, m, near, mask(m) {where = i - j < 4})
      p = merge(o, attend(q, m)) {fn = sum}
      far = attend(q, m)""",
    ).replace("return o", "return o, p, far")
    after = run(parse(text), PIPELINE)
    assert len(set(after.names.values())) == len(after.nodes)
    assert [after.names[node] for node in after.outputs] == ["o", "p", "far"]
    assert parse(after.text()).outputs == after.outputs


def test_diff_is_unified() -> None:
    variant = parse(PLAIN.replace("m = tokens", "m = tokens").replace("return o", "n = merge(o) {fn = lse}\n return n"))
    after = run(variant, PIPELINE)
    text = diff("canonicalise", variant, after)
    assert "--- before\n+++ after canonicalise" in text and "-  n = merge(o) {fn = lse}" in text
