"""A declaration that breaks a rule is refused at once, naming the value, the rule and a fix."""

from __future__ import annotations

from collections.abc import Callable

import pytest

import sparsec
from sparsec.ir import build as lang
from sparsec.ir import build_state as states
from sparsec.ir.error import DeclarationError
from sparsec.ir.node import Node


def q(heads: str = "H", dim: str = "D") -> Node:
    """Queries."""
    return lang.input("q", f"B TQ {heads} {dim}")


def mem(chunk: int | None = 64, length: str = "TK", heads: str = "HKV") -> Node:
    """Keys and values."""
    return lang.tokens(lang.input("k", f"B {length} {heads} D"), lang.input("v", f"B {length} {heads} DV"), chunk=chunk)


def scores(size: int = 64, length: str = "TK") -> Node:
    """Per key/value head scores of mean keys."""
    return lang.reduce(lang.score(q(), lang.summary(mem(length=length), size=size, stride=size)), over="group")


def listed(**attrs: object) -> Node:
    """A list of chunks."""
    return lang.topk(scores(), k=2, size=64, **attrs)  # type: ignore[arg-type]


def bank() -> Node:
    """A state."""
    return states.state(parts=4)


def two() -> list[Node]:
    """Two branches."""
    return [lang.attend(q(), mem()), lang.attend(q(), mem(), softcap=1.0)]


def gate() -> Node:
    """One branch's gate."""
    return lang.input("g", "B TQ H")


def kv() -> tuple[Node, Node]:
    """Keys and values as tensors."""
    return lang.input("k", "B TK HKV D"), lang.input("v", "B TK HKV DV")


CASES: dict[str, tuple[Callable[[], object], str, str]] = {
    "k is 0": (lambda: lang.topk(scores(), k=0, size=64), "k = 0", "1 or more"),
    "k is no number": (lambda: lang.topk(scores(), k="many", size=64), "k = many", "whole number"),  # type: ignore[arg-type]
    "k above fixed blocks": (lambda: lang.topk(scores(length="128"), k=3, size=64), "k = 3", "only 2 to choose from"),
    "k above fixed slots": (
        lambda: lang.topk(lang.score(q(), lang.input("s", "16 HKV D")), k=17, unit="token", scope="head"),
        "k = 17",
        "only 16",
    ),
    "misspelt choice": (lambda: listed(scope="kv_heads"), "scope = kv_heads", "did you mean `kv_head`?"),
    "wrong unit": (lambda: lang.topk(scores(), k=2, size=32), "size = 32", "size = 64"),
    "scope without reduce": (
        lambda: lang.topk(lang.score(q(), lang.summary(mem(), size=64, stride=64)), k=2, size=64),
        "scope = kv_head",
        "over = group",
    ),
    "scope token with heads": (lambda: listed(scope="token"), "scope = token", "over = heads"),
    "uncounted without slots": (lambda: listed(count_forced=False), "slots = None", "slots = 2 + forced"),
    "slots above k": (lambda: listed(slots=3), "slots = 3, k = 2", "slots = 2"),
    "j in eligible": (lambda: listed(eligible="j <= i"), "eligible = j <= i", "may use i, c"),
    "eligible is a number": (lambda: listed(eligible="c + i"), "eligible = c + i", "true or false"),
    "eligible does not parse": (lambda: listed(eligible="(c <= i"), "eligible = ", "never closed"),
    "H not a multiple of HKV": (lambda: lang.attend(q("6"), mem(heads="4")), "H = 6, HKV = 4", "divisible"),
    "block not a multiple of stride": (
        lambda: lang.reduce(scores(), over="overlap", size=32, stride=16, block=40),
        "block = 40, stride = 16",
        "block = 48",
    ),
    "pooling without kernel": (lambda: lang.reduce(scores(), over="blocks", stride=4), "over = blocks", "kernel must"),
    "visible without softmax": (
        lambda: lang.reduce(scores(), over="heads", visible="c <= i"),
        "visible",
        "pre = softmax",
    ),
    "gaps between summaries": (lambda: lang.summary(mem(), size=8, stride=16), "stride = 16", "no gap"),
    "head dims differ": (lambda: lang.attend(q(dim="DR"), mem()), "DR and D", "one head dim"),
    "attend without values": (
        lambda: lang.attend(q(), lang.summary(mem(), size=8, stride=8)),
        "without values",
        "fields = kv",
    ),
    "chunks of another size": (lambda: lang.attend(q(), mem(32), listed()), "chunk = 32", "{chunk = 64}"),
    "two lists": (lambda: lang.attend(q(), mem(), listed(), listed(order="newest")), "2 lists", "merge two attends"),
    "per chunk without weights": (lambda: lang.attend(q(), mem(), listed(), per="chunk"), "per = chunk", "weights"),
    "stick out of order": (lambda: lang.weights(scores(), listed(), fn="stick"), "order = score", "order = newest"),
    "lse of a gated merge": (
        lambda: lang.lse(lang.merge(lang.attend(q(), mem()), lang.attend(q(), mem()), fn="sum")),
        "merge",
        "log-sum-exp",
    ),
    "gates are missing": (lambda: lang.merge(lang.attend(q(), mem()), fn="gated"), "1 branches, 0 gates", "1 missing"),
    "a memory where a tensor goes": (lambda: lang.attend(mem(), mem()), "a memory (tokens)", "`q` is a tensor"),
    "too few sources": (lambda: lang.merge(fn="sum"), "0 sources", "it takes (x+)"),
    "float indices": (lambda: lang.given(lang.input("ids", "B TQ HKV 4"), size=64), "float", "int32"),
    "unknown capture": (lambda: lang.mask(mem(), where="j < w[h]", v=q()), "where = w", "unknown tensor"),
    "too many indices": (lambda: lang.mask(mem(), where="j < w[h, i]", w=lang.input("w", "H")), "w[h, i]", "w[b]"),
    "a source that map has not": (lambda: lang.map(q(), fn="x0 + x1"), "x0 + x1", "it may use x0 and dims"),
    "a dim that is no number": (lambda: lang.input("x", "B TQ 0.5"), "0.5", "whole number"),
    "unknown word in a shape": (lambda: lang.input("x", "B, TQ +"), "TQ +", "(TK + 63) // 64"),
    "softcap of 0": (lambda: lang.attend(q(), mem(), softcap=0.0), "softcap = 0.0", "leave it out"),
    "a mean of overlapping windows": (
        lambda: lang.reduce(scores(), over="overlap", op="mean", size=32, stride=16, block=32),
        "op = mean",
        "op = sum",
    ),
    "shares of a sum that a stick has not": (
        lambda: lang.weights(scores(), listed(order="newest"), fn="stick", renormalise=False),
        "fn = stick",
        "softmax",
    ),
    "modulo 0": (lambda: lang.mask(mem(), where="j % 0 == 0"), "where = j % 0", "the divisor is 0"),
    "modulo 0, traced": (lambda: lang.mask(mem(), where=lambda i, j: j % 0 == 0), "where = j % 0", "the divisor is 0"),
    "divided by 0": (lambda: lang.mask(mem(), where="j <= i // 0"), "where = i // 0", "another number"),
    "divided by what is 0": (lambda: lang.mask(mem(), where="j <= i // (TK - TK)"), "where = i // 0", "divisor"),
    "numbers divided by 0": (lambda: lang.mask(mem(), where=lambda j: j <= 5 // 0), "where = ", "zero"),
    "a bias divided by 0": (lambda: lang.attend(q(), mem(), bias="score + j // 0"), "bias = j // 0", "divisor is 0"),
    "a dim divided by 0": (lambda: lang.input("x", "[B, TK // 0]"), "TK // 0", "the divisor is 0"),
    "gated without gates": (lambda: lang.merge(*two(), fn="gated"), "2 branches, 0 gates", "per branch: 2 missing"),
    "gated with one gate": (lambda: lang.merge(*two(), fn="gated", gates=[gate()]), "2 branches, 1 gates", "1 missing"),
    "convex without a gate": (lambda: lang.merge(*two(), fn="convex"), "2 branches, 0 gates", "in all: 1 missing"),
    "softcap below 0": (lambda: lang.attend(q(), mem(), softcap=-1.0), "softcap = -1.0", "at least 0"),
    "parts that nothing tells apart": (
        lambda: states.write(states.state(parts=3), *kv()),
        "parts = 3, no route",
        "a route: topk(scores) {unit = part}",
    ),
    "decay of the wrong rank": (
        lambda: states.write(bank(), *kv(), decay=lang.input("g", "B TK HKV"), decay_kind="key"),
        "input [B, TK, HKV]",
        "4 dims",
    ),
    "half an erase": (
        lambda: states.write(bank(), *kv(), rule="delta", erase_a=lang.input("a", "B TK HKV D")),
        "erase_a",
        "together",
    ),
    "a route of chunks": (lambda: states.write(bank(), *kv(), route=listed()), "route is topk", "unit = part"),
    "residual of nothing written": (lambda: states.residual(kv()[1], bank(), kv()[0]), "state", "write"),
    "rows differ": (lambda: states.write(states.state(rows="DR"), *kv()), "[B, TK, HKV, D]", "rows = D"),
    "top of a sum": (lambda: states.recall(q(), bank(), top=2), "top = 2", "state_softmax"),
    "balance of nothing": (lambda: states.aux(scores(), fn="balance"), "fn = balance", "add the selection"),
}


@pytest.mark.parametrize("name", CASES)
def test_refused(name: str) -> None:
    build, value, fix = CASES[name]
    with pytest.raises(DeclarationError) as caught:
        build()
    error = caught.value
    assert value in error.value, str(error)
    assert fix in f"{error.rule} {error.fix}", str(error)
    assert error.origin is not None and error.origin.file == __file__ and error.origin.line > 0
    assert str(error.origin) in str(error)


def test_the_node_is_named_by_its_variable() -> None:
    with pytest.raises(DeclarationError, match="topk `chosen`: k = 0"):
        chosen = lang.topk(scores(), k=0, size=64)
        del chosen


def test_k_above_what_may_exist_is_legal() -> None:
    assert lang.topk(scores(), k=10_000, size=64).integer("k") == 10_000


def test_errors_blame_the_place_of_the_variant_at_hand() -> None:
    """Equal nodes are one node, which the text that was read last wrote too."""
    first = sparsec.preset("full", causal=False)
    again = sparsec.parse(first.text(), "later.sparsec")
    assert first == again
    for variant, file in ((first, "full.py"), (again, "later.sparsec"), (first, "full.py")):
        with pytest.raises(DeclarationError, match=rf"{file}:\d+.*shows keys after the query's own"):
            _ = sparsec.compile(variant, target="interpreter").decoder
