"""The right-hand side of each op as Triton source."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

from sparsec.backends.triton.access import load
from sparsec.backends.triton.functions import HELPERS, INFIX, call, literal, needs_tensor
from sparsec.backends.triton.text import Speaker, Text, dtype_name, sizes
from sparsec.scalar.fn import Fn
from sparsec.tile.build import union
from sparsec.tile.language import Axis, Node, TileOp


def expression(speaker: Speaker, node: Node) -> Text:
    """What a node computes, from how its operands are written."""
    made = _EXPRESSIONS[node.op](speaker, node)
    return made if isinstance(made, Text) else Text(made)


def _map(speaker: Speaker, node: Node) -> Text:
    fn = cast(Fn, node.attrs[0])
    texts = [speaker.at(a, node.axes) for a in node.args]
    operands = [_operand(fn, t) for t in texts]
    if needs_tensor(fn):
        operands = [_tensor(o, a) for o, a in zip(operands, node.args, strict=True)]
    text, infix = call(fn, operands, node)
    speaker.helpers.update({text.partition("(")[0]} & HELPERS.keys())
    return Text(text, infix, product=fn in (Fn.MUL, Fn.DIV))


def _operand(fn: Fn, text: Text) -> str:
    if fn in (Fn.ADD, Fn.SUB):
        return text.summand
    return text.closed if fn in INFIX or fn in (Fn.NEG, Fn.NOT) else text.text


def _tensor(text: str, node: Node) -> str:
    return f"tl.full([], {text}, {dtype_name(node.dtype)})" if node.op is TileOp.CONST else text


def _mask_if(speaker: Speaker, node: Node) -> str:
    condition, mask, x, other = node.args
    keep = f"{speaker.at(mask, node.axes).closed} | ~{speaker.text(condition).closed}"
    return f"tl.where({keep}, {speaker.at(x, node.axes).text}, {speaker.at(other, node.axes).text})"


def _full(speaker: Speaker, node: Node) -> str:
    return f"tl.full({sizes(node.axes)}, {literal(node.attrs[0], node.dtype)}, {dtype_name(node.dtype)})"


def _dot(speaker: Speaker, node: Node) -> Text | str:
    a, b, *acc = node.args
    over = cast(Axis, node.attrs[0])
    if min(len(a.axes), len(b.axes)) == 1:
        return _inner(speaker, node, over)
    if node.axes[0] not in a.axes:
        a, b = b, a
    operands = [_matrix(speaker, a, (node.axes[0], over)), _matrix(speaker, b, (over, node.axes[1]))]
    if a.dtype == "float32" and node.attrs[1] == "tf32":
        speaker.helpers.add("tf32")
        operands = [f"tf32({x})" for x in operands]
    operands += [speaker.text(x).text for x in acc]
    precision = f', input_precision="{node.attrs[1]}"' if a.dtype == "float32" else ""
    return f"tl.dot({', '.join(operands)}{precision})"


def _matrix(speaker: Speaker, node: Node, wanted: tuple[Axis, Axis]) -> str:
    text = speaker.text(node).text
    return text if node.axes == wanted else f"tl.trans({text})"


def _inner(speaker: Speaker, node: Node, over: Axis) -> Text:
    """Multiply and sum, where an operand is a vector and tensor cores do not apply."""
    a, b, *acc = node.args
    axes = union(a, b)
    factors = [speaker.at(x, axes).closed + ("" if x.dtype == "float32" else ".to(tl.float32)") for x in (a, b)]
    total = f"tl.sum({' * '.join(factors)}, {axes.index(over)})"
    return Text(f"{total} + {speaker.text(acc[0]).closed}", True) if acc else Text(total)


def _reduce(speaker: Speaker, node: Node) -> str:
    (x,) = node.args
    return f"tl.{node.attrs[0]}({speaker.text(x).text}, {x.axes.index(cast(Axis, node.attrs[1]))})"


def _scan(speaker: Speaker, node: Node) -> str:
    return f"tl.cumsum({speaker.text(node.args[0]).text}, {node.axes.index(cast(Axis, node.attrs[0]))})"


def _rename(speaker: Speaker, node: Node) -> Text:
    old, new = node.attrs
    names = [new if axis == old else axis for axis in node.args[0].axes]
    order = [names.index(axis) for axis in node.axes]
    made = speaker.text(node.args[0])
    return made if order == sorted(order) else Text(f"tl.permute({made.text}, {order})")


def _cast(speaker: Speaker, node: Node) -> str:
    (x,) = node.args
    if x.op is TileOp.CONST:
        return f"tl.full([], {speaker.text(x).text}, {dtype_name(node.dtype)})"
    return f"{speaker.text(x).closed}.to({dtype_name(node.dtype)})"


def _top_insert(speaker: Speaker, node: Node) -> str:
    """The helper's call: slots and candidates last, a few candidates sorted before they are as many as the slots.

    The candidates of a single row, too few to keep a program's threads busy one part after another, are ranked at once.
    """
    slots, candidates = cast(tuple[Axis, Axis], node.attrs)
    rows = tuple(axis for axis in node.axes if axis != slots)
    kept, new = (
        _matrix_last(speaker, x, (*rows, last)) for x, last in zip(node.args, (slots, candidates), strict=True)
    )
    text = _top_few(speaker, kept, new, slots.size // candidates.size, len(rows))
    if not text and all(axis.size == 1 for axis in rows) and 1 < slots.size < candidates.size:
        speaker.helpers.add("top_of_row")
        text = f"top_of_row({kept}, {new}, {slots.size}, {len(rows)})"
    if not text:
        speaker.helpers.add("top_insert")
        text = f"top_insert({kept}, {new}, {slots.size}, {candidates.size}, {len(rows)})"
    wanted = (*rows, slots)
    return text if wanted == node.axes else f"tl.permute({text}, {[wanted.index(a) for a in node.axes]})"


def _top_few(speaker: Speaker, kept: str, new: str, times: int, axis: int) -> str:
    """The call where there are fewer candidates than slots."""
    if times <= 1:
        return ""
    speaker.helpers.update(("behind", "top_few"))
    text = f"tl.sort({new})"
    for _ in range(times.bit_length() - 1):
        text = f"behind({text}, {axis})"
    return f"top_few({kept}, {text})"


def _matrix_last(speaker: Speaker, node: Node, wanted: tuple[Axis, ...]) -> str:
    text = speaker.text(node).text
    return text if node.axes == wanted else f"tl.permute({text}, {[node.axes.index(a) for a in wanted]})"


_EXPRESSIONS: dict[TileOp, Callable[[Speaker, Node], Text | str]] = {
    TileOp.PROGRAM_ID: lambda speaker, node: f"tl.program_id({node.attrs[0]})",
    TileOp.IOTA: lambda speaker, node: f"tl.arange(0, {node.axes[0].size})",
    TileOp.FULL: _full,
    TileOp.MAP: _map,
    TileOp.MASK_IF: _mask_if,
    TileOp.LOAD: load,
    TileOp.DOT: _dot,
    TileOp.REDUCE: _reduce,
    TileOp.SCAN: _scan,
    TileOp.RENAME: _rename,
    TileOp.CAST: _cast,
    TileOp.TOP_INSERT: _top_insert,
}
"""Constants, parameters and loop variables are written by name; stores and loops are statements."""
