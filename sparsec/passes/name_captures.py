"""One name for each tensor that masks and biases read, whatever each of them calls it."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain

from sparsec.ir.make import make, remake
from sparsec.ir.node import Node, topological
from sparsec.ir.op import Op
from sparsec.ir.origin import written_as
from sparsec.ir.schema import SCHEMA
from sparsec.ir.variant import Variant, numbered
from sparsec.scalar.expr import Expr, element
from sparsec.scalar.walk import rebuilt, transform


def name_captures(variant: Variant) -> Variant:
    """A captured tensor has the same name at every node that reads it, and nothing else has it; an input its own.

    merge(attend(q, m, g=x){score + g[h]}, attend(q, m, g=y){score - g[h]})
        ->  merge(attend(q, m, g=x){score + g[h]}, attend(q, m, y=y){score - y[h]})

    Variants with adjoints, which say a capture by its name, stay as they are.
    """
    wanted = _wanted(variant)
    read = [(name, source) for node in variant.nodes for name, source in node.captures.items()]
    named = all(wanted[source] == name == variant.names[source] for name, source in read)
    if named or any(node.op is Op.VJP for node in variant.nodes):
        return variant
    done: dict[Node, Node] = {}
    for node in topological(variant.outputs):
        with written_as(node):
            done[node] = _renamed(node, [done[source] for source in node.src], wanted)
    names = {done[node]: name for node, name in {**variant.names, **wanted}.items()}
    return variant.with_outputs([done[node] for node in variant.outputs], names=names)


def _wanted(variant: Variant) -> dict[Node, str]:
    """By captured tensor what it is captured as first, if nothing else is called so; an operand's name is nobody's."""
    operands = {name for schema in SCHEMA.values() for name in schema.operands}
    found: dict[Node, str] = {}
    for name, source in (pair for node in variant.nodes for pair in node.captures.items()):
        own = variant.names[source]
        if source.op is Op.INPUT:
            found[source] = name if own in operands else own
        elif source not in found:
            taken = operands.union((n for x, n in variant.names.items() if x is not source), found.values())
            found[source] = next(n for n in chain([name], numbered(own)) if n not in taken)
    return found


def _renamed(node: Node, sources: list[Node], wanted: Mapping[Node, str]) -> Node:
    """The node of other sources, its captures called as is wanted."""
    other = {name: wanted[source] for name, source in node.captures.items() if wanted[source] != name}
    if not other:
        return node if tuple(sources) == node.src else remake(node, sources)
    count, operands = len(node.positional), node.names("operands")
    named = dict(zip(operands, sources[count:], strict=False))
    captured = zip(node.captures, sources[count + len(operands) :], strict=True)
    named |= {other.get(name, name): source for name, source in captured}
    attrs = {name: _reading(value, other) for name, value in node.attrs if name not in ("operands", "captures")}
    return make(node.op, sources[:count], named, **attrs)


def _reading(value: object, other: Mapping[str, str]) -> object:
    """An attribute that reads elements by other names."""

    def rule(x: Expr, args: tuple[Expr, ...]) -> Expr:
        known = x.head == "element" and str(x.value) in other
        return element(other[str(x.value)], *args, kind=x.kind) if known else rebuilt(x, args)

    return transform(value, rule) if isinstance(value, Expr) else value
