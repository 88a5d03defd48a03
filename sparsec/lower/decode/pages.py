"""Programs of a forward plan as programs of a decode step: keys come from pages, lengths from the device.

A rewrite of the tile program, whatever its class: a load of row j of a paged tensor looks its page up in the block
table; a launch parameter that depends on how long a sequence is becomes an expression of the sequence's own length.
So no kernel and no launch depends on lengths, and one CUDA graph serves a cache that grows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from sparsec.lower.decode.ahead import looked_up
from sparsec.lower.scalars import add, emit_int32, most, mul
from sparsec.scalar.expr import Expr
from sparsec.scalar.fn import Fn
from sparsec.scalar.walk import depends_on
from sparsec.tile import build as tile
from sparsec.tile.language import Access, Node, Program, Tensor, TileOp, access_of
from sparsec.tile.rewrite import accesses, copies, rewrite, stored

LENGTHS = "cache_lengths"
"""int32 ``[B]``: the tokens of each sequence before the new ones."""

ENDS = "cache_ends"
"""int32 ``[B]``: the tokens of each sequence with the new ones, as the first launch of a step leaves them."""

TOKENS = "tokens"
"""The launch parameter with the number of new tokens per sequence."""


@dataclass(frozen=True, slots=True)
class Paged:
    """Where the rows of a tensor ``[B, N, …]`` live.

    Attributes:
        table: the block table's name: int32 ``[B, blocks]``, the page of each block of rows.
        rows: rows of a page; the tensor becomes ``[pages, rows, …]``.
    """

    table: str
    rows: int


@dataclass(frozen=True, slots=True)
class Growing:
    """How launch parameters follow from a sequence's length.

    Attributes:
        queries, keys: the names of the dims that count new tokens and all tokens.
        params: the launch parameters as expressions over dims and ``q_offset``.
    """

    queries: str
    keys: str
    params: Mapping[str, Expr]


@dataclass(frozen=True, slots=True)
class Windows:
    """Which windows of a summary a step brings up to date: as many programs, from the first that new tokens touch."""

    size: int
    stride: int
    total: str

    @property
    def count(self) -> str:
        """The launch parameter with the most windows that a step can touch."""
        return f"windows_{self.size}_{self.stride}"


def on_cache(program: Program, paged: Mapping[str, Paged], growing: Growing, windows: Windows | None = None) -> Program:
    """The program over pages and lengths of its own, which are those of the batch entry that it works for."""
    tables = {name: Tensor(name, "int32", ("B", f"{name}_blocks")) for name in _tables(program, paged)}
    moved = _Moved(paged, growing, tables, Tensor(LENGTHS, "int32", ("B",)), windows, _sequence(program))
    held = {n for d, g in enumerate(program.grid) if d or windows is None for n in _params(g)}
    assert not held & moved.changing, f"{program.name}: its grid counts keys"
    tensors = [_pool(t, paged.get(t.name)) for t in program.tensors]
    own = [moved.lengths] if windows is not None or _read(program) & moved.changing else []
    kept = [(n, d) for n, d in program.params if n not in moved.changing]
    kept += [] if windows is None else [(windows.count, "int32")]
    found = rewrite(program, moved, [*tensors, *tables.values(), *own], kept)
    if windows is None:
        return found
    with tile.Builder():
        return replace(found, grid=(tile.param(windows.count), *found.grid[1:]))


@dataclass(frozen=True, slots=True)
class _Moved:
    """The rule: what becomes of a node."""

    paged: Mapping[str, Paged]
    growing: Growing
    tables: Mapping[str, Tensor]
    lengths: Tensor
    windows: Windows | None
    batch: Node

    @property
    def length(self) -> Node:
        """The tokens that this program's sequence had before."""
        return tile.load(self.lengths, *copies([self.batch]))

    @property
    def changing(self) -> set[str]:
        """Launch parameters that depend on a sequence's length."""
        return {n for n, e in self.growing.params.items() if depends_on(e, self.growing.keys, "q_offset")}

    def __call__(self, node: Node, args: tuple[Node, ...]) -> Node | None:
        """The node that takes a node's place; None keeps it."""
        if node.op is TileOp.PARAM and node.attrs[0] in self.changing:
            return self._param(str(node.attrs[0]))
        if node.op is TileOp.PARAM and node.attrs[0] == "TK" and self.growing.params["TK"].head == "const":
            return tile.const(int(self.growing.params["TK"].value or 0))  # slots, which no token adds to
        if node.op is TileOp.PROGRAM_ID and node.attrs[0] == 0 and self.windows is not None:
            return add(tile.program_id(0), self._first())
        if node.op not in (TileOp.LOAD, TileOp.STORE) or access_of(node).tensor.name not in self.paged:
            return None
        access = access_of(node)
        paged = self.paged[access.tensor.name]
        if node.op is TileOp.STORE:
            return self._store(access, args, paged)
        return _load(access, args, paged, self.tables[paged.table], self.windows is not None)

    def _param(self, name: str) -> Node:
        """A launch parameter of this program's sequence."""
        start, new = self.length, tile.param(TOKENS, declare=True)
        env = {self.growing.queries: new, self.growing.keys: add(start, new), "q_offset": start, "B": tile.param("B")}
        return emit_int32(self.growing.params[name], env)

    def _first(self) -> Node:
        """The first window whose last token is new."""
        assert self.windows is not None
        start, size, stride = self.length, self.windows.size, self.windows.stride
        return tile.apply(Fn.TRUNCDIV, most(add(start, stride - size), 0), stride)

    def _store(self, access: Access, args: tuple[Node, ...], paged: Paged) -> Node:
        """A summary's window, where it exists."""
        assert self.windows is not None and not access.bounded, "only summaries are written to pages"
        batch, window, *rest, value = args
        there = tile.apply(Fn.LT, window, self._param(self.windows.total))
        block = tile.apply(Fn.WHERE, there, tile.apply(Fn.TRUNCDIV, window, paged.rows), 0)
        row = tile.apply(Fn.TRUNCMOD, window, paged.rows)
        page = tile.load(self.tables[paged.table], batch, block)
        width = access.tensor.shape[-1]
        assert isinstance(width, int)
        limit = tile.apply(Fn.WHERE, there, width, 0)
        tile.store(_pool(access.tensor, paged), page, row, *rest, value=value, bounds={access.tensor.rank - 1: limit})
        return stored()


def _sequence(program: Program) -> Node:
    """The scalar by which a program finds its batch entry."""
    found = [n.args[0] for n, a in accesses(program) if a.tensor.shape[0] in ("B", "LB") and not n.args[0].axes]
    return min(found, key=lambda n: (n.op is not TileOp.PROGRAM_ID, n.serial))


def _tables(program: Program, paged: Mapping[str, Paged]) -> list[str]:
    return list(dict.fromkeys(paged[t.name].table for t in program.tensors if t.name in paged))


def _pool(tensor: Tensor, paged: Paged | None) -> Tensor:
    if paged is None:
        return tensor
    return replace(tensor, shape=(f"{tensor.name}_pages", paged.rows, *tensor.shape[2:]))


def _params(node: Node) -> set[str]:
    own = {str(node.attrs[0])} if node.op is TileOp.PARAM else set()
    return own.union(*(_params(a) for a in node.args))


def _read(program: Program) -> set[str]:
    """The launch parameters that a program reads."""
    return {str(n.attrs[0]) for n in tile.reachable(program.effects) if n.op is TileOp.PARAM}


def _load(access: Access, args: tuple[Node, ...], paged: Paged, table: Tensor, beyond: bool) -> Node:
    """Row j of sequence b as row j % rows of page ``table[b, j // rows]``; a program of a window may lie beyond all."""
    tensor = _pool(access.tensor, paged)
    rank = access.tensor.rank
    batch, row, *rest = args[:rank]
    bounds: dict[int, tile.Value] = dict(zip(access.bounded, args[rank:], strict=True))
    start, tiles = scalar_part(row)
    limit = bounds.get(1)
    if tiles is not None and _within(start, tiles, paged.rows):
        block = tile.apply(Fn.TRUNCDIV, start, paged.rows)
        inside = tile.apply(Fn.TRUNCMOD, start, paged.rows)
        if limit is not None:
            bounds[1] = tile.apply(Fn.SUB, limit, mul(block, paged.rows))
        if limit is not None and beyond:
            block = tile.apply(Fn.WHERE, tile.apply(Fn.LT, start, limit), block, 0)
        page = looked_up(table, batch, block)
        return tile.load(tensor, page, add(inside, tiles), *rest, bounds=bounds, other=access.other)
    return _gather(access, tensor, (batch, row, *rest), bounds, paged, table)


def _gather(
    access: Access, tensor: Tensor, index: tuple[Node, ...], bounds: dict[int, tile.Value], paged: Paged, table: Tensor
) -> Node:
    """Rows looked up one by one; a row past its bound is one past the end of some page."""
    batch, row, *rest = index
    limit = bounds.pop(1, None)
    block, inside = (tile.apply(fn, row, paged.rows) for fn in (Fn.TRUNCDIV, Fn.TRUNCMOD))
    if limit is None:
        return tile.load(tensor, tile.load(table, batch, block), inside, *rest, bounds=bounds, other=access.other)
    there = tile.apply(Fn.LT, row, limit)
    page = tile.load(table, batch, tile.apply(Fn.WHERE, there, block, 0))
    inside = tile.apply(Fn.WHERE, there, inside, paged.rows)
    return tile.load(tensor, page, inside, *rest, bounds={**bounds, 1: paged.rows}, other=access.other)


def scalar_part(index: Node) -> tuple[Node, Node | None]:
    """A row index as a scalar and what has axes; (0, index) where they cannot be told apart."""
    if not index.axes:
        return index, tile.const(0)
    if index.op is TileOp.MAP and index.attrs[0] is Fn.ADD:
        a, b = index.args
        for scalar, rest in ((a, b), (b, a)):
            if not scalar.axes:
                start, tiles = scalar_part(rest)
                return add(scalar, start), tiles
    return tile.const(0), index


def _within(start: Node, tiles: Node, rows: int) -> bool:
    """Whether ``start + tiles`` never leaves the page of ``start``."""
    if not tiles.axes:
        return True
    if tiles.op is not TileOp.IOTA:
        return False
    size = tiles.axes[0].size
    return rows % size == 0 and _multiple(start, size)


def _multiple(node: Node, of: int) -> bool:
    """Whether a scalar is known to be a multiple of a number."""
    if node.op is TileOp.CONST:
        return int(str(node.attrs[0])) % of == 0
    if node.op is not TileOp.MAP or len(node.args) != 2:
        return False
    a, b = node.args
    if node.attrs[0] in (Fn.ADD, Fn.SUB):
        return _multiple(a, of) and _multiple(b, of)
    if node.attrs[0] is Fn.MUL:
        return any(x.op is TileOp.CONST and int(str(x.attrs[0])) % of == 0 for x in (a, b))
    return False
