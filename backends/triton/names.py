"""Names of printed variables: by what they hold, never twice, never an argument's."""

from __future__ import annotations

import keyword
import re
from collections.abc import Iterable

from sparsec.backends.triton.functions import HELPERS
from sparsec.scalar.fn import COMPARISONS, LOGIC, Fn
from sparsec.tile.language import Node, TileOp, access_of

RESERVED = frozenset({*keyword.kwlist, *HELPERS, "tl", "triton", "float", "range"})
GLUON = frozenset({
    "GROUP", "LANES", "LOADS", "ROWS", "SCORES", "STAGES", "SUMS", "VALUES", "WEIGHTS", "async_copy", "before",
    "begun", "copy", "core", "dot", "fetch", "free", "full", "gluon", "half", "held", "held_full", "hopper",
    "keys_free", "keys_full", "keys_ring", "late_free", "late_full", "late_rows", "later", "mbarrier", "moved",
    "none", "nothing", "number", "numbers", "passed", "put", "q_rows", "queries", "queries_free", "queries_full",
    "ring", "row", "slot", "sums", "target", "tma", "turn", "values_free", "values_full", "values_ring", "weights",
})  # fmt: skip
"""What Gluon source names itself: no tensor is printed so, in Triton either, as a kernel may be printed as both."""

_MADE = re.compile(r"\w+_([st]\d+|desc(_\d+)?)")
_HINTS = {
    TileOp.DOT: "dot", TileOp.TOP_INSERT: "best", TileOp.SCAN: "running", TileOp.FULL: "fill", TileOp.MASK_IF: "kept",
}  # fmt: skip
_KINDS = {"max": "top", "min": "least", "sum": "total"}


def argument(tensor: str) -> str:
    """The name of a tensor as printed: its own, with an underscore where it is one that the printer makes or needs.

    Names that end in an underscore after such a word get one more, so that no two tensors have one name.
    """
    plain = tensor.rstrip("_")
    return f"{tensor}_" if plain in RESERVED | GLUON or _MADE.fullmatch(plain) else tensor


def hint(node: Node) -> str:
    """What to call a value."""
    if node.op is TileOp.PROGRAM_ID:
        return f"pid{node.attrs[0]}"
    if node.op is TileOp.IOTA:
        return f"{node.axes[0].name}_i"
    if node.op is TileOp.LOAD:
        return access_of(node).tensor.name + ("_tile" if node.axes else "_value")
    if node.op is TileOp.REDUCE:
        return _KINDS[str(node.attrs[0])]
    fn = node.attrs[0] if node.attrs else None
    if fn in (Fn.EXP, Fn.EXP2):
        return "p"
    if isinstance(fn, Fn) and (fn in COMPARISONS or (fn in LOGIC and node.dtype == "bool")):
        return "mask"
    whole = f"{node.axes[0].name}_pos" if len(node.axes) == 1 else "index"
    return _HINTS.get(node.op, whole if node.dtype == "int32" else "key" if node.dtype == "int64" else "x")


def state_hint(yielded: Node) -> str:
    """What to call a carried value, by what makes its next state."""
    if yielded.op is TileOp.DOT:
        return "acc"
    if yielded.op is TileOp.TOP_INSERT:
        return "best"
    fn = yielded.attrs[0] if yielded.attrs else None
    return "high" if fn is Fn.MAXIMUM else "total" if fn is Fn.ADD else "state"


class Names:
    """Hands out names that are not taken."""

    def __init__(self, taken: Iterable[str]) -> None:
        self.taken = set(taken) | RESERVED

    def fresh(self, wanted: str) -> str:
        """The wanted name, with a number where it is taken."""
        name, number = wanted, 0
        while name in self.taken:
            number += 1
            name = f"{wanted}_{number}"
        self.taken.add(name)
        return name


def merge(lines: list[str], start: int, value: str, variable: str) -> bool:
    """Let ``value``, assigned once from line ``start`` on, be the new state of ``variable``; false where it must not.

    Possible where nothing reads the variable's old state after the line that makes the value.
    """
    word, old = (re.compile(rf"(?<!\.)\b{name}\b") for name in (value, variable))  # not tl.dot for a value called dot
    first = next((k for k in range(start, len(lines)) if word.search(lines[k])), None)
    if first is None or not lines[first].lstrip().startswith(f"{value} = "):
        return False
    if any(old.search(line) for line in lines[first + 1 :]):
        return False
    lines[start:] = [word.sub(variable, line) if k >= first else line for k, line in enumerate(lines) if k >= start]
    if lines[first].strip() == f"{variable} = {variable}":
        del lines[first]
    return True
