"""The graph as text: one statement per node, in an order and under names that do not change from run to run."""

from __future__ import annotations

from collections.abc import Mapping

from sparsec.ir.node import Node, Value
from sparsec.ir.op import Op
from sparsec.ir.schema import SCHEMA, Attr
from sparsec.ir.variant import InputSpec, Variant
from sparsec.scalar.expr import Expr


def to_text(variant: Variant) -> str:
    """A variant as ``.sparsec`` text, under the names that its author chose."""
    knobs = " ".join(f"{name}={_knob(value)}" for name, value in variant.knobs)
    note = f"# {variant.name} {knobs}\n" if knobs else ""
    return note + _body(variant, variant.name, variant.names)


def canonical_text(variant: Variant) -> str:
    """The same for equal graphs: nodes numbered in order, no name and no knobs. Input names stay."""
    names = {node: str(node["name"]) for node in variant.parameters}
    rest = (node for node in variant.nodes if node not in names)
    return _body(variant, "variant", names | {node: f"_{n}" for n, node in enumerate(rest)})


def _knob(value: object) -> str:
    return ",".join(str(item) for item in value) if isinstance(value, tuple | list) else str(value)


def _body(variant: Variant, name: str, names: Mapping[Node, str]) -> str:
    inputs = ", ".join(f"{names[node]}: {InputSpec(node.shape, node.dtype)}" for node in variant.parameters)
    lines = [f"  {names[node]} = {statement(node, names)}" for node in variant.nodes if node.op is not Op.INPUT]
    outputs = ", ".join(names[node] for node in variant.outputs)
    return "\n".join([f"variant {name}({inputs}) {{", *lines, f"  return {outputs}", "}"]) + "\n"


def statement(node: Node, names: Mapping[Node, str]) -> str:
    """One node as ``op(sources, name=source) {attribute = value}``; defaults that say nothing are left out."""
    named = (f"{name}={names[source]}" for name, source in (node.operands | node.captures).items())
    sources = ", ".join([*(names[source] for source in node.positional), *named])
    schema = SCHEMA[node.op].attrs
    stated = [f"{name} = {_value(node[name])}" for name, attr in schema.items() if _is_said(node, name, attr)]
    return f"{node.op.value}({sources})" + (f" {{{', '.join(stated)}}}" if stated else "")


def _is_said(node: Node, name: str, attr: Attr) -> bool:
    """Whether an attribute is worth a word: no default of nothing, no consequence of another, not the only choice."""
    value = node[name]
    if name == "slots" and node["count_forced"]:
        return False  # it is k
    says_nothing = value is None or value is False or str(value) in ("none", "1") or len(attr.choices) == 1
    return not (says_nothing and str(attr.default) == str(value))


def _value(value: Value) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value) if isinstance(value, Expr | str | int) else "none" if value is None else repr(value)
