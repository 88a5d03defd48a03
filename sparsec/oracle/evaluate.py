"""The value of any node of a graph in fp64, rows in blocks: one query at a time (loop) or a few hundred (vector)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from sparsec.ir.adjoint import Key
from sparsec.ir.node import Node
from sparsec.ir.op import Op
from sparsec.oracle.form import FORMS, FormName
from sparsec.oracle.rows import ROWS
from sparsec.oracle.values import Value, join, plain, take
from sparsec.oracle.whole import WHOLE
from sparsec.scalar.evaluate import evaluate
from sparsec.scalar.expr import Expr

BUDGET = 2**22  # numbers in the largest intermediate of a block of rows
LONGEST_BLOCK = 256


class Evaluation:
    """The values of nodes under one set of inputs; keeps what it has computed.

    Attributes:
        known: values that are given instead of computed: the inputs, and any node to be replaced.
        dims: the numbers behind the symbolic dims.
        q_offset: the position of query row 0.
        queries: the rows of what has no shape of its own, which are those of the variant.
        storage: the dtype in which the inputs came, to which scores round summaries that are declared so; None: fp64.
        adjoints: gradients found so far, by the sources of the ``vjp`` nodes that ask for them.
    """

    def __init__(
        self,
        known: Mapping[Node, Value],
        dims: Mapping[str, int],
        form: FormName,
        q_offset: int,
        device: torch.device,
        queries: int | None = None,
        storage: torch.dtype | None = None,
    ) -> None:
        self.storage = storage
        self.queries = dims.get("TQ", dims.get("T", 0)) if queries is None else queries
        self.dims, self.q_offset, self.device = dict(dims), q_offset, device
        self.batch = self.dims.get("B", 1)
        self.form_name: FormName = form if self.batch else "vector"
        self.form = FORMS[self.form_name]
        self._whole: dict[Node, Value] = dict(known)
        self._part: dict[Node, Value] = {}
        self.adjoints: dict[tuple[tuple[Node, ...], str], dict[Key, Tensor]] = {}
        self._index = torch.zeros(0, dtype=torch.int64, device=device)

    def whole(self, node: Node) -> Value:
        """The value over all query rows."""
        if node not in self._whole:
            self._whole[node] = self._all_rows(node) if by_row(node) else self._once(node)
        return self._whole[node]

    def _once(self, node: Node) -> Value:
        """A node that has no query rows, or a single one for all queries, at the position of query row 0."""
        if node.op in WHOLE:
            return WHOLE[node.op](self, node)
        outer, self._index = self._index, torch.zeros(1, dtype=torch.int64, device=self.device)
        value = ROWS[node.op](self, node)
        self._index = outer
        return value

    def part(self, node: Node) -> Value:
        """The value on the rows in hand."""
        if node in self._whole or not by_row(node):
            return take(self.whole(node), self._index)
        if node not in self._part:
            self._part[node] = ROWS[node.op](self, node)
        return self._part[node]

    def rows(self, node: Node) -> Tensor:
        """The tensor on the rows in hand, which are its dimension 1."""
        return plain(self.part(node))

    def tensor(self, node: Node) -> Tensor:
        """The whole tensor."""
        return plain(self.whole(node))

    def at(self, nodes: Sequence[Node], index: Tensor) -> list[Value]:
        """The values of nodes on some rows, computed for those rows only."""
        pieces = [[self.part(node) for node in nodes] for _ in self.blocks(index)]
        return [join(piece) for piece in zip(*pieces, strict=True)]

    def pieces(self, node: Node, rows: Tensor | None = None) -> Iterator[tuple[Value, Tensor | None]]:
        """A node block by block with the rows of each, of all or of some; at once where it is not computed by rows."""
        if not by_row(node):
            yield self.whole(node), None
            return
        every = torch.arange(self.row_count(node), device=self.device) if rows is None else rows
        for index in self.blocks(every):
            yield self.part(node), index

    def blocks(self, index: Tensor) -> Iterator[Tensor]:
        """Takes rows in hand, block by block; afterwards those that were in hand before."""
        outer = self._index, self._part, self.form
        self.form = self.form if index.numel() else FORMS["vector"]
        for block in index.split(self._block()):
            self._index, self._part = block, {}
            yield block
        self._index, self._part, self.form = outer

    def row_count(self, node: Node) -> int:
        """How many query rows a node has; a mask, and a list per block of queries, have those of the variant."""
        shared = node.op is Op.GIVEN and node.integer("query_block") > 1
        return self.dim(node.shape[1]) if len(node.shape) > 1 and not shared else self.queries

    def _all_rows(self, node: Node) -> Value:
        return self.at([node], torch.arange(self.row_count(node), device=self.device))[0]

    def _block(self) -> int:
        if self.form_name == "loop":
            return 1
        longest = max(self.dims.values(), default=1)
        return min(max(BUDGET // max(self.batch * self.dims.get("H", 1) * longest, 1), 1), LONGEST_BLOCK)

    @property
    def index(self) -> Tensor:
        """The numbers of the rows in hand."""
        return self._index

    @property
    def positions(self) -> Tensor:
        """The query positions i of the rows in hand."""
        return self.q_offset + self._index

    def places(self, heads: int, columns: int, batch: int) -> dict[str, Tensor]:
        """b, h, i and j (also as c) of scores ``[B,R,H,N]``, ready to broadcast."""
        b, h, j = (torch.arange(n, device=self.device) for n in (batch, heads, columns))
        place = {"b": b[:, None, None, None], "h": h[:, None], "i": self.positions[:, None, None], "j": j}
        return {**place, "c": j}

    def predicate(self, node: Node, attr: str, shape: torch.Size, default: bool) -> Tensor:
        """An attribute over i and c as bools of a shape ``[B,R,HS,N]``."""
        expr = node.expr(attr)
        if expr is None:
            return torch.full(shape, default, dtype=torch.bool, device=self.device)
        return self.expression(expr, self.places(shape[2], shape[3], shape[0])).expand(shape)

    def captured(self, node: Node) -> dict[str, Tensor]:
        """Captured tensors by the name that expressions use."""
        return {name: self.tensor(source) for name, source in node.captures.items()}

    def expression(self, expr: Expr, env: Mapping[str, Tensor]) -> Tensor:
        """An expression's value as a tensor."""
        return torch.as_tensor(evaluate(expr, {**self.dims, **env}), device=self.device)

    def number(self, expr: Expr | None) -> float:
        """An expression over dims."""
        assert expr is not None
        return float(evaluate(expr, self.dims))

    def dim(self, expr: Expr) -> int:
        """A symbolic dim as a number."""
        return int(evaluate(expr, self.dims))

    def name(self, node: Node) -> str:
        """How a message calls a node."""
        return str(node["name"]) if node.op is Op.INPUT else node.op.value


def by_row(node: Node) -> bool:
    """Whether a node is computed block by block of query rows; a map is, where a source is.

    What is reduced over all queries is not, nor is a list or a weight that follows from it: these have one row for all.
    """
    if node.op is Op.MAP:
        return any(by_row(source) for source in node.src)
    if node.op in (Op.BIAS, Op.REDUCE, Op.TOPK, Op.WEIGHTS):
        return by_row(node.src[0]) and not (node.op is Op.REDUCE and node.word("over") == "queries")
    return node.op in ROWS and (node.op is not Op.AUX or node.word("fn") == "kl")
