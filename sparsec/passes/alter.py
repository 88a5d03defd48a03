"""A node with something else about it; checked and inferred anew like any other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sparsec.ir.build import mask
from sparsec.ir.make import make
from sparsec.ir.node import Node
from sparsec.ir.origin import written_as
from sparsec.scalar.expr import Expr


def altered(
    node: Node,
    named: Mapping[str, Node | None] | None = None,
    positional: Sequence[Node] | None = None,
    **attrs: object,
) -> Node:
    """The same op with other attributes, positional sources or named sources (None drops one)."""
    kept = {name: value for name, value in node.attrs if name not in ("operands", "captures")}
    sources = node.positional if positional is None else positional
    return make(node.op, sources, {**node.operands, **node.captures, **(named or {})}, **{**kept, **attrs})


def with_selections(attend: Node, selections: Sequence[Node]) -> Node:
    """The same attend with other selections."""
    return altered(attend, positional=(*attend.positional[:2], *selections))


def mask_after(like: Node, memory: Node, where: Expr, captures: Mapping[str, Node] | None = None) -> Node:
    """A mask that takes the name and the place of the node that it stands for."""
    with written_as(like):
        return mask(memory, where=where, **(captures or {}))
