"""The one way to a node: attributes coerced, defaults written out, rules checked, result inferred, interned."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import replace
from itertools import chain, count
from types import FunctionType

from sparsec.ir.coerce import Captures, Refused, coerce, missing
from sparsec.ir.error import DeclarationError
from sparsec.ir.infer import INFER
from sparsec.ir.node import Node, Value, intern
from sparsec.ir.op import Op
from sparsec.ir.origin import Origin, here, record
from sparsec.ir.rules_select import Problem
from sparsec.ir.schema import MAPPED, SCHEMA
from sparsec.ir.suggest import did_you_mean
from sparsec.ir.verify import problem
from sparsec.scalar.closure import captured_tensors
from sparsec.scalar.expr import Expr, call, var
from sparsec.scalar.fn import Fn
from sparsec.scalar.walk import tensors

Named = Mapping[str, Node | None]


def make(op: Op, sources: Sequence[Node], named: Named | None = None, /, **attrs: object) -> Node:
    """A node from sources, named sources (operands, and captures under any other name) and attributes.

    Raises:
        DeclarationError: an unknown or missing attribute, a value of the wrong form, a broken rule of the op.
    """
    origin = here()
    offset = 0
    try:
        node = _draft(op, sources, {name: node for name, node in (named or {}).items() if node is not None}, attrs)
        wrong = problem(node)
    except Refused as refused:
        wrong, offset = refused.problem, refused.offset
    if wrong is not None:
        raise _error(op, wrong, origin, offset)
    shape, kind, dtype = INFER[op](node)
    done = intern(op, node.src, dict(node.attrs), shape, kind, dtype)
    record(done, origin)
    return done


def remake(node: Node, sources: Sequence[Node]) -> Node:
    """The same op with other sources, checked and inferred anew; an explicit scale stays as it is."""
    positional = len(node.positional)
    names = (*node.names("operands"), *node.names("captures"))
    attrs = {name: value for name, value in node.attrs if name not in ("operands", "captures")}
    return make(node.op, sources[:positional], dict(zip(names, sources[positional:], strict=True)), **attrs)


def _error(op: Op, wrong: Problem, origin: Origin | None, offset: int) -> DeclarationError:
    name = f" `{origin.name}`" if origin and origin.name else ""
    return DeclarationError(f"{op.value}{name}", wrong.value, wrong.rule, wrong.fix, origin, offset)


def _draft(op: Op, sources: Sequence[Node], named: dict[str, Node], attrs: dict[str, object]) -> Node:
    """The node before its result is known."""
    schema = SCHEMA[op]
    for source in sources:
        if not isinstance(source, Node):
            several = isinstance(source, list | tuple) and source and isinstance(source[0], Node)
            fix = "give its members one after another, without the list"
            raise Refused(source, "a source is a node", fix if several else "pass what a constructor returned")
    for name, source in named.items():
        if not isinstance(source, Node):
            masks = op is Op.ATTEND and name == "where"
            fix = "lang.mask(memory, where=…) as a selection" if masks else "pass what a constructor returned"
            raise Refused(f"{name} = {source}", "a named source is a node", fix)
    named = {**named, **_closed_over(attrs, named, schema.operands)} if schema.captures else named
    operands = [name for name in schema.operands if name in named]
    captured = [name for name in named if name not in schema.operands]
    if captured and not schema.captures:
        raise Refused(captured[0], f"{op.value} has no such source", did_you_mean(captured[0], schema.operands))
    values = _attributes(op, attrs, {name: named[name] for name in captured}, len(sources))
    if schema.operands:
        values["operands"] = tuple(operands)
    if schema.captures:
        captured = sorted(set(captured) & _used(values))
        values["captures"] = tuple(captured)
    src = (*sources, *(named[name] for name in (*operands, *captured)))
    _complete(op, src, values)
    return Node(op, src, tuple(sorted(values.items())), (), "tensor", "float")


def _closed_over(attrs: dict[str, object], named: dict[str, Node], operands: Sequence[str]) -> dict[str, Node]:
    """Tensors that functions among the attributes read from where they are defined: captured without a keyword.

    An input has its own name, whatever else is called so: its elements are read by it. None has that of an operand.
    """
    known = [node for name, node in named.items() if name not in operands]
    functions = (value for value in attrs.values() if isinstance(value, FunctionType))
    read = [(name, x) for f in functions for name, x in captured_tensors(f).items() if isinstance(x, Node)]
    found: dict[str, Node] = {}
    for name, node in sorted(read, key=lambda pair: pair[1].op is not Op.INPUT):
        if node.kind != "tensor" or any(node is other for other in (*known, *found.values())):
            continue
        own = str(node["name"]) if node.op is Op.INPUT else _free(name, {*operands, *named, *found})
        if own in operands:
            raise Refused(own, "here this is the name of an operand", f"call the input {own}_in, say")
        if own in named:
            said = f"the function also reads the input `{own}`"
            raise Refused(f"{own} = {named[own]}", said, f"give the keyword another name than {own}")
        found[own] = node
    return found


def _free(name: str, taken: Container[str]) -> str:
    """A name, or the first of ``name_1`` … that nothing has."""
    return next(n for n in chain([name], (f"{name}_{k}" for k in count(1))) if n not in taken)


def _attributes(op: Op, attrs: dict[str, object], captures: Captures, sources: int) -> dict[str, Value]:
    known = SCHEMA[op].attrs
    for name in attrs:
        if name not in known:
            raise Refused(name, f"{op.value} has no such attribute", did_you_mean(name, known))
    values: dict[str, Value] = {}
    for name, attr in known.items():
        if name not in attrs and missing(attr.default):
            raise Refused(f"no {name}", "it must be given", f"{name} = {attr.choices[0] if attr.choices else '…'}")
        if attr.index is MAPPED:
            attr = replace(attr, index=dict(list(MAPPED.items())[:sources]))
        stated = attrs.get(name, attr.default)
        try:
            values[name] = coerce(attr, stated, captures, attrs.get("size"))
        except Refused as refused:
            value, rule, fix = refused.problem
            raise Refused(f"{name} = {value}", rule, fix, refused.offset) from refused
    return values


def _used(values: dict[str, Value]) -> set[str]:
    """Captured tensors that the expressions read; one that none reads is no source."""
    return {name for value in values.values() if isinstance(value, Expr) for name in tensors(value)}


def _complete(op: Op, src: tuple[Node, ...], values: dict[str, Value]) -> None:
    """Defaults that depend on the rest, written out so that the node says everything."""
    if op in (Op.SCORE, Op.ATTEND) and values["scale"] is None and src:
        values["scale"] = call(Fn.RSQRT, src[0].shape[-1])
    if op is Op.TOPK and values["slots"] is None and values["count_forced"]:
        values["slots"] = values["k"]
    if op is Op.REDUCE and values["over"] == "overlap" and values["importance"] is None:
        values["importance"] = "overlap"
    if op is Op.SUMMARY and values["stride"] is None:
        values["stride"] = values["size"]
    if op in (Op.MAP, Op.PREFIX) and values["fn"] is None:
        values["fn"] = var("x0", "float")
