"""Chains of maps become one map, so that nothing between them is stored."""

from __future__ import annotations

from sparsec.ir.build import map as mapped
from sparsec.ir.node import Node
from sparsec.ir.op import Op
from sparsec.ir.rewrite import rewrite
from sparsec.ir.schema import MAPPED
from sparsec.ir.variant import Variant
from sparsec.scalar.expr import Expr, var
from sparsec.scalar.walk import substitute, transform

LONGEST = 256
"""Operations of a fused function, written out: beyond that, storing what several terms share is cheaper."""


def fuse_maps(variant: Variant) -> Variant:
    """A map of maps without a row function between them is one map; what several maps read is computed in each.

    map(map(a, b){f}, c){g}  ->  map(a, b, c){g(f(x0, x1), x2)}
    map(map(a){row = softmax, f}){g}  ->  map(a){row = softmax, g(f(x0))}
    """
    return variant.with_outputs(rewrite(variant.outputs, (one_map,)))


def one_map(node: Node) -> Node | None:
    """As above; at most as many sources as a map has names for."""
    if node.op is not Op.MAP or node["row"] != "none" or all(s.op is not Op.MAP for s in node.src):
        return None
    align = _common_align(node)
    if align is None:
        return None
    row = _common_row(node)
    inside = [s.op is Op.MAP and s.word("row") == row and s["top"] is None for s in node.src]
    sources = [x for s, opened in zip(node.src, inside, strict=True) for x in (s.src if opened else (s,))]
    distinct = list(dict.fromkeys(sources))
    if not any(inside) or len(distinct) > len(MAPPED):
        return None
    known: dict[str, Expr] = {}
    for number, (source, opened) in enumerate(zip(node.src, inside, strict=True)):
        known[f"x{number}"] = _renamed(source, distinct) if opened else _name(source, distinct)
    fn = substitute(_fn(node), known)
    return mapped(*distinct, fn=fn, row=row, align=align) if _operations(fn) <= LONGEST else None


def _common_align(node: Node) -> str | None:
    """How the sources of the one map line up: a map of nothing but another one's result leaves that as it was."""
    if len(node.src) == 1:
        return node.src[0].word("align")
    return None if any(m.op is Op.MAP and m["align"] != "none" for m in (node, *node.src)) else "none"


def _common_row(node: Node) -> str:
    """The row function that all sources have gone through; none where they differ."""
    found = {s.word("row") if s.op is Op.MAP and s["top"] is None else "none" for s in node.src}
    return found.pop() if len(found) == 1 else "none"


def _renamed(inner: Node, sources: list[Node]) -> Expr:
    """The function of an inner map over the sources of the outer one."""
    return substitute(_fn(inner), {f"x{n}": _name(source, sources) for n, source in enumerate(inner.src)})


def _name(source: Node, sources: list[Node]) -> Expr:
    return var(f"x{sources.index(source)}", "float")


def _operations(fn: Expr) -> int:
    def count(x: Expr, inner: tuple[int, ...]) -> int:
        return sum(inner) + bool(x.args)

    return transform(fn, count)


def _fn(node: Node) -> Expr:
    fn = node.expr("fn")
    assert fn is not None
    return fn
