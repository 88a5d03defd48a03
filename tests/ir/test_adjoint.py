"""``vjp`` nodes: the shape and dtype of every gradient, and what is refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from sparsec.frontends.text import parse
from sparsec.ir import build as lang
from sparsec.ir.adjoint import TARGETS, key_of, targets
from sparsec.ir.dims import bind
from sparsec.ir.error import DeclarationError, InputError
from sparsec.ir.make import remake
from sparsec.ir.node import Node
from sparsec.ir.op import Op
from sparsec.ir.variant import variant

Q, DO, DL = lang.input("q", "B TQ H D"), lang.input("do", "B TQ H DV"), lang.input("dl", "B TQ H float32")
DS = lang.input("ds", "B TQ H TK float32")
M = lang.tokens(lang.input("k", "B TK HKV D"), lang.input("v", "B TK HKV DV"), chunk=4)
SLOTS = lang.slots(lang.input("ks", "M HKV D"), lang.input("vs", "M HKV DV"))
SLOPES, SEEN = lang.input("slopes", "H float32"), lang.input("seen", "B TK int32")
SINK = lang.input("sink", "H float32")
BIAS = "where(seen[b, j] > 0, score, slopes[h])"
O = lang.attend(Q, M, sink=SINK, bias=BIAS, slopes=SLOPES, seen=SEEN)  # noqa: E741
SUMS = lang.summary(M, size=4, stride=4, fields="kv")
GIVEN = lang.summary(M, lang.input("g", "B NS HKV D"), fn="given", size=4, stride=4)
SCORES = lang.score(Q, M)
GATE = lang.input("gate", "B TQ H")
BOTH = lang.merge(O, lang.attend(Q, SLOTS), fn="lse")


def shape(node: Node) -> str:
    """Dims and dtype as text."""
    return " ".join([*(str(dim) for dim in node.shape), node.dtype])


SHAPES: dict[str, tuple[Callable[[], Node], str]] = {
    "q": (lambda: lang.vjp(O, DO, of="q"), "B TQ H D float"),
    "k": (lambda: lang.vjp(O, DO, of="k", lse_grad=DL), "B TK HKV D float"),
    "v": (lambda: lang.vjp(O, DO, of="v"), "B TK HKV DV float"),
    "sink": (lambda: lang.vjp(O, DO, of="sink"), "H float32"),
    "capture": (lambda: lang.vjp(O, DO, of="capture", capture="slopes"), "H float32"),
    "learned keys": (lambda: lang.vjp(lang.attend(Q, SLOTS), DO, of="k"), "M HKV D float"),
    "keys of summaries": (lambda: lang.vjp(lang.attend(Q, SUMS), DO, of="k"), "B (TK + 3) // 4 HKV D float"),
    "summarised values": (
        lambda: lang.vjp(SUMS, lang.input("dv", "B, (TK + 3) // 4, HKV, DV"), of="v"), "B TK HKV DV float",
    ),
    "given": (lambda: lang.vjp(GIVEN, lang.input("dk", "B, (TK + 3) // 4, HKV, D"), of="given"), "B NS HKV D float"),
    "scored keys": (lambda: lang.vjp(SCORES, DS, of="keys"), "B TK HKV D float"),
    "scores": (lambda: lang.vjp(lang.bias(SCORES, fn="score * 2.0"), DS, of="scores"), "B TQ H TK float32"),
    "a branch": (lambda: lang.vjp(BOTH, DO, of="x1"), "B TQ H DV float"),
    "its log-sum-exp": (lambda: lang.vjp(BOTH, DO, of="lse1", lse_grad=DL), "B TQ H float32"),
    "a gate": (lambda: lang.vjp(lang.merge(O, gates=[GATE], fn="gated"), DO, of="x1"), "B TQ H float"),
}  # fmt: skip


@pytest.mark.parametrize("case", SHAPES)
def test_a_gradient_is_shaped_like_its_source(case: str) -> None:
    build, wanted = SHAPES[case]
    node = build()
    assert (shape(node), node.kind) == (wanted, "tensor")
    assert remake(node, node.src) is node
    (dims, dtype), target = wanted.rsplit(" ", 1), targets(node.src[0])[key_of(node)]
    assert (" ".join(str(dim) for dim in target.shape), target.dtype) == (dims, dtype)


def test_only_ops_with_a_slope_have_targets() -> None:
    sloped = {Op.MAP, Op.PREFIX, Op.SUMMARY, Op.SCORE, Op.BIAS, Op.REDUCE, Op.WEIGHTS, Op.ATTEND, Op.MERGE}
    of_states = {Op.STATE, Op.WRITE, Op.RECALL, Op.SURPRISE, Op.NORM2, Op.ROW_LSE, Op.MASS, Op.MIXTURE}
    assert set(TARGETS) == sloped | {Op.TOPK, Op.AUX} | of_states
    assert ("capture", "seen") not in targets(O)


REFUSED: dict[str, tuple[Callable[[], Node], str, str]] = {
    "no such source": (lambda: lang.vjp(O, DO, of="keys"), "of = keys", "attend has gradients of q, k, v, sink"),
    "nearly": (lambda: lang.vjp(O, DO, of="sinks"), "of = sinks", "did you mean `sink`?"),
    "an integer": (lambda: lang.vjp(O, DO, of="capture", capture="seen"), "capture = seen", "`slopes`|one of slopes"),
    "no capture": (lambda: lang.vjp(O, DO, of="capture"), "of = capture, capture = none", "one of slopes"),
    "a capture of q": (lambda: lang.vjp(O, DO, of="q", capture="slopes"), "of = q, capture = slopes", "alone"),
    "a predicate": (lambda: lang.vjp(lang.lse(O), DL, of="x0"), "lse", "this op has no adjoint"),
    "an adjoint": (lambda: lang.vjp(lang.vjp(O, DO, of="q"), Q, of="x0"), "vjp", "adjoint of an adjoint"),
    "too few dims": (lambda: lang.vjp(O, DL, of="q"), "input [B, TQ, H]", "give floats [B, TQ, H, DV]"),
    "other dims": (lambda: lang.vjp(O, Q, of="q"), "input [B, TQ, H, D]", "[B, TQ, H, DV]"),
    "integers": (lambda: lang.vjp(O, lang.input("n", "B TQ H DV int32"), of="q"), "input", "give floats"),
    "keys for values": (
        lambda: lang.vjp(SUMS, lang.input("dk", "B, (TK + 3) // 4, HKV, D"), of="v"), "HKV, D]", "HKV, DV]",
    ),
    "lse of a sum": (
        lambda: lang.vjp(lang.merge(O, O, fn="sum"), DO, of="x0", lse_grad=DL), "lse_grad of merge", "leave it out",
    ),
    "lse_grad of another shape": (lambda: lang.vjp(O, DO, of="q", lse_grad=Q), "[B, TQ, H, D]", "[B, TQ, H]"),
    "values that are not summarised": (lambda: lang.vjp(GIVEN, Q, of="v"), "of = v", "has gradients of given"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str) -> None:
    build, value, fix = REFUSED[case]
    with pytest.raises(DeclarationError) as caught:
        build()
    assert value in caught.value.value, str(caught.value)
    assert any(text in f"{caught.value.rule} {caught.value.fix}" for text in fix.split("|")), str(caught.value)


def test_a_text_with_a_wrong_word_shows_the_place() -> None:
    text = """variant x(q: [B,TQ,H,D], k: [B,TK,HKV,D], v: [B,TK,HKV,DV], do: [B,TQ,H,DV]) {
  o = attend(q, tokens(k, v))
  return vjp(o, do) {of = w}
}"""
    with pytest.raises(DeclarationError, match=r"<text>:3:\d+: vjp: of = w: attend has gradients of q, k, v here"):
        parse(text)


def test_dims_of_a_cotangent_are_checked_when_they_bind() -> None:
    of = variant("x", lang.vjp(lang.map(GATE), lang.input("d", "B, TQ, 2 * HX"), of="x0"), knobs={})
    named = variant("y", [*of.outputs, lang.input("e", "HX")])
    assert bind(named, {"gate": (1, 2, 4), "d": (1, 2, 4), "e": (2,)})["HX"] == 2
    with pytest.raises(InputError, match="a cotangent and its primal must agree"):
        bind(named, {"gate": (1, 2, 4), "d": (1, 2, 6), "e": (3,)})
