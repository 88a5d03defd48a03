"""Rewriting: what no rule changes stays the same node; rules see rebuilt sources; endless rules are caught."""

from __future__ import annotations

import pytest

from sparsec.ir import build as lang
from sparsec.ir.node import Node
from sparsec.ir.op import Op
from sparsec.ir.rewrite import RewriteError, rewrite
from sparsec.ir.verify import VerifyError, verify


def graph(window: int = 8) -> Node:
    """Attention over a window, merged with itself."""
    q = lang.input("q", "B TQ H D")
    memory = lang.tokens(lang.input("k", "B TK HKV D"), lang.input("v", "B TK HKV DV"))
    seen = lang.mask(memory, where=f"(j <= i) & (i - j < {window})")
    gate = lang.map(lang.map(lang.input("g", "B TQ H")), fn="sigmoid(x0)")
    return lang.merge(lang.attend(q, memory, seen), gates=[gate], fn="gated")


def drop_identity(node: Node) -> Node | None:
    """map(x) {fn = x0}  ->  x"""
    same = node.op is Op.MAP and str(node["fn"]) == "x0" and node.word("row") == "none"
    return node.src[0] if same else None


def widen(node: Node) -> Node | None:
    """A window of 8 becomes one of 16."""
    if node.op is not Op.MASK or "16" in str(node["where"]):
        return None
    return lang.mask(node.src[0], where="(j <= i) & (i - j < 16)")


def test_nothing_to_do_gives_the_same_nodes() -> None:
    (same,) = rewrite([graph()], [lambda node: None])
    assert same is graph()


def test_a_rule_reaches_everywhere_below() -> None:
    (wider,) = rewrite([graph()], [widen])
    (plain,) = rewrite([graph(16)], [])
    assert wider is plain


def test_rules_compose_and_settle() -> None:
    (done,) = rewrite([graph()], [drop_identity, widen])
    assert done is not graph()
    assert rewrite([done], [drop_identity, widen]) == (done,)
    assert done.src[1].src[0].op is Op.INPUT


def test_rules_that_undo_each_other_are_named() -> None:
    def narrow(node: Node) -> Node | None:
        back = node.op is Op.MASK and "16" in str(node["where"])
        return lang.mask(node.src[0], where="(j <= i) & (i - j < 8)") if back else None

    with pytest.raises(RewriteError, match="widen, narrow"):
        rewrite([graph()], [widen, narrow])


def test_deep_graphs_do_not_recurse() -> None:
    x = lang.input("x", "B")
    for _ in range(3000):
        x = lang.map(lang.map(x), fn="x0 * 2.0")
    (done,) = rewrite([x], [drop_identity])
    depth = 0
    while done.src:
        done, depth = done.src[0], depth + 1
    assert depth == 3000


def test_verify_passes_what_constructors_built() -> None:
    verify([graph()], "after nothing")


def test_verify_names_the_culprit() -> None:
    good = graph().src[0]
    broken = Node(good.op, good.src, good.attrs, good.shape[:2], good.kind, good.dtype)
    with pytest.raises(VerifyError, match=r"after shrink: .*attend"):
        verify([broken], "after shrink")
    swapped = Node(good.op, (good.src[1], *good.src[1:]), good.attrs, good.shape, good.kind, good.dtype)
    with pytest.raises(VerifyError, match="`q` is a tensor"):
        verify([swapped], "after swap")
