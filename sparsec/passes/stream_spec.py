"""What a decode cache holds, as a value that prints: rows that stay, rows that are dropped, running summaries."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce
from operator import add, mul

from sparsec.scalar.evaluate import evaluate
from sparsec.scalar.expr import Expr, constant


@dataclass(frozen=True, slots=True)
class Kept:
    """The rows of one input that a cache keeps.

    Attributes:
        unit: tokens per row: 1 for tokens, the chunk's size for what is given once a chunk is complete.
        window: the last so many rows stay; None where all do.
        sinks: so many rows at the start stay in any case; 0 where all stay.
        row: elements of a row, over heads and head dims.
        dtype: "float" (the call's), float32 or int32.
        chosen: whether it is read through lists of chunks alone, so that most of it is cold.
    """

    name: str
    unit: int
    window: int | None
    sinks: int
    row: Expr
    dtype: str
    chosen: bool = False

    def text(self) -> str:
        """One line."""
        per = "token" if self.unit == 1 else f"{self.unit} tokens"
        if self.window is None:
            cold = ", read by chosen chunks alone" if self.chosen else ""
            return f"{self.name}: pages, {self.row} {self.dtype} per {per}{cold}"
        pinned = f" and {self.sinks} pinned" if self.sinks else ""
        return f"{self.name}: ring of {self.window} rows{pinned}, {self.row} {self.dtype} per {per}"


@dataclass(frozen=True, slots=True)
class Running:
    """A summary that is brought up to date: windows that new tokens touch, the partial last one among them.

    Attributes:
        name: of the summary's node.
        size, stride: tokens of a window, and from one to the next.
        row: elements per window that attention reads, keys and values together.
        exact: elements per window that a selector reads, which are kept in fp32.
    """

    name: str
    size: int
    stride: int
    row: Expr
    exact: Expr

    def text(self) -> str:
        """One line."""
        widths = [f"{n} {what}" for n, what in ((self.row, "float"), (self.exact, "float32")) if n.value != 0]
        return f"{self.name}: running, {' and '.join(widths)} per {self.stride} tokens, windows of {self.size}"

    def nbytes(self, item: int) -> Expr:
        """Bytes per window."""
        return self.row * item + self.exact * 4


@dataclass(frozen=True, slots=True)
class Held:
    """The states of one written bank, which every step writes in place.

    Attributes:
        name: of the input at which the step's bank begins.
        state: of the written node.
        shape: of a sequence's states: parts, heads, rows, columns.
        output: which of the step's outputs the states after it are.
        initial: the declared input with the first states; None where they are zero.
        levels: of a Fenwick schedule, which moves with the tokens and has room for 2^(levels − 1); None for another.
    """

    name: str
    state: str
    shape: tuple[Expr, ...]
    output: int
    initial: str | None = None
    levels: int | None = None

    def text(self) -> str:
        """One line."""
        sizes = " x ".join(str(dim) for dim in self.shape)
        begins = "zero" if self.initial is None else self.initial
        return f"{self.name}: states of {self.state}, {sizes} float32, written in place, from {begins}"

    @property
    def nbytes(self) -> Expr:
        """Bytes of a sequence."""
        return reduce(mul, self.shape, constant(4))


@dataclass(frozen=True, slots=True)
class CacheSpec:
    """A variant's decode cache.

    Attributes:
        kept: inputs with a row per token or per chunk, which grow with every step.
        running: summaries that are updated.
        fresh: inputs with a row per query, read by the step that brings them and not kept.
        constant: inputs without a length: slots, sinks, slopes; every step is given them, none is copied.
        states: matrix states, of one size at any length.
    """

    kept: tuple[Kept, ...]
    running: tuple[Running, ...]
    fresh: tuple[str, ...]
    constant: tuple[str, ...]
    states: tuple[Held, ...] = ()

    @property
    def paged(self) -> bool:
        """Whether anything is kept per token."""
        return bool(self.kept or self.running)

    @property
    def counted(self) -> bool:
        """Whether anything goes by the number of tokens."""
        return self.paged or self.most is not None

    @property
    def most(self) -> int | None:
        """The tokens that levels of states have room for; None without any."""
        found = [1 << state.levels - 1 for state in self.states if state.levels is not None]
        return min(found) if found else None

    @property
    def steady(self) -> bool:
        """Whether nothing grows with the sequence."""
        return not self.running and all(k.window is not None for k in self.kept)

    def per_token(self, item: int = 2) -> Expr:
        """Bytes that one more token adds for ever, over heads and head dims; ``item`` bytes per "float"."""
        parts = [_share(k.row * _bytes(k.dtype, item), k.unit) for k in self.kept if k.window is None]
        parts += [_share(r.nbytes(item), r.stride) for r in self.running]
        return reduce(add, parts) if parts else constant(0)

    def pinned(self, item: int = 2) -> Expr:
        """Bytes that rings, pinned rows and states take, whatever the length."""
        parts = [k.row * (_bytes(k.dtype, item) * (k.window + k.sinks)) for k in self.kept if k.window is not None]
        parts += [held.nbytes for held in self.states]
        return reduce(add, parts) if parts else constant(0)

    def nbytes(self, dims: Mapping[str, int], length: int, item: int = 2) -> int:
        """Bytes of one sequence after so many tokens."""
        growing, fixed = evaluate(self.per_token(item), dims), evaluate(self.pinned(item), dims)
        return int(growing * length + fixed)

    def text(self) -> str:
        """The cache, a line per part, and its bytes as formulas."""
        lines = [*(f"  {k.text()}" for k in self.kept), *(f"  {r.text()}" for r in self.running)]
        lines += [f"  {held.text()}" for held in self.states]
        lines += [f"  {name}: given with every new token, not kept" for name in self.fresh]
        lines += [f"  {name}: the same for every token, given with every step, not kept" for name in self.constant]
        growing = re.sub(r"\.0\b", "", str(self.per_token()))  # what is divided is divided by whole numbers
        lines += [f"  bytes per token (2 per float): {growing}", f"  bytes at any length: {self.pinned()}"]
        return "\n".join(lines) + "\n"


def _bytes(dtype: str, item: int) -> int:
    return item if dtype == "float" else 4


def _share(size: Expr, tokens: int) -> Expr:
    return size if tokens == 1 else size / tokens
