"""Gradients of the queries that scored a list's columns, and of an indexer's head weights: one walk over the list."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from sparsec.lower.scalars import add, mul
from sparsec.lower.select import divergence, index_rows
from sparsec.lower.select.dense_walk import Keys
from sparsec.lower.select.divergence import Columns
from sparsec.plan.selection.signal_specs import IndexGradQ
from sparsec.scalar.fn import Fn
from sparsec.tile import build as tile
from sparsec.tile.language import Node, Program, Tensor
from sparsec.tile.schedule import Schedule


def lower(spec: IndexGradQ, schedule: Schedule) -> Program:
    """Gradients of scores ``[B,TQ,HS,columns]``, given or made from a loss -> grad_q ``[B,TQ,H,D]`` and of weights."""
    with tile.Builder() as builder:
        c = _columns(builder, spec, schedule)
        grads = None
        if spec.scores_grad is not None:
            grads = index_rows.listed(spec.index, spec.columns, spec.scores_grad)
        pull = _Pull(spec, c, grads)

        def visit(n: Node, *sums: Node) -> Sequence[Node]:
            return _step(pull, n, sums)

        sums = list(tile.loop(*c.span, 1, _start(pull), visit, schedule.stages))
        written = [*([grads] if grads is not None else []), *_write(pull, sums)]
        tensors = [*_keys_read(pull), *c.tensors, *pull.read, *written]
        return divergence.finish(builder, spec.name, spec.index, tensors)


def _columns(builder: tile.Builder, spec: IndexGradQ, schedule: Schedule) -> Columns | Keys:
    if spec.loss is not None:
        return divergence.columns(builder, spec.loss, schedule)
    return divergence.begin(builder, spec.index, spec.columns, schedule)


def _keys_read(pull: _Pull) -> list[Tensor]:
    """What gradients of queries take beside scores that the choice kept."""
    if not pull.ranked or pull.spec.grad_q is None or not isinstance(pull.c, Columns):
        return []
    return [*index_rows.tensors(pull.spec.index), pull.c.indices]


class _Pull:
    """What a program reads beside the list: the loss whose gradient is asked for."""

    def __init__(self, spec: IndexGradQ, c: Columns | Keys, grads: Tensor | None) -> None:
        self.spec, self.c, self.grads = spec, c, grads
        self.read: list[Tensor] = []
        if spec.loss is None:
            return
        assert spec.grad is not None
        rows = [divergence.row(spec.index, name) for name in (spec.loss.total, spec.loss.lse, spec.grad)]
        self.slope, self.read = divergence.Slope(spec.loss, c, rows), rows

    @property
    def ranked(self) -> bool:
        """Whether the choice kept the scores that are compared."""
        return self.spec.loss is not None and self.spec.loss.scores is not None

    def of_scores(self, n: Node, scores: Node) -> Node:
        """The gradients of a tile's scores, made and stored, or read."""
        if self.spec.loss is None:
            assert self.grads is not None and isinstance(self.c, Columns)
            return self.c.read(self.grads, n)
        found = self.slope.of(self.c.masses(n), scores)
        if self.grads is not None:
            assert isinstance(self.c, Columns)
            tile.store(self.grads, *self.c.place(n), value=found, bounds={3: self.c.width})
        return found


def _start(pull: _Pull) -> list[Node]:
    own = pull.c.own
    axes = [own.rows] if _apart(pull) and own.rows is not None else []
    sums = [tile.full(0.0, *axes, d.axis) for d in own.dims] if pull.spec.grad_q is not None else []
    return [*sums, *([tile.full(0.0, *axes)] if pull.spec.grad_weights is not None else [])]


def _apart(pull: _Pull) -> bool:
    """Whether heads have gradients of their own: those of a group without weights are equal."""
    return pull.spec.index.head_weights is not None


def _step(pull: _Pull, n: Node, sums: Sequence[Node]) -> list[Node]:
    """Add a tile of columns."""
    c, own = pull.c, pull.c.own
    if not sums and pull.ranked:  # gradients of scores alone
        pull.of_scores(n, c.scores(n))
        return []
    key, precision = c.key(n), own.schedule.precision
    product = own.products(key)
    active = own.active(product)
    scores = mul(active, own.weights)
    if pull.ranked:
        found = pull.of_scores(n, c.scores(n))
    else:
        found = pull.of_scores(n, scores if own.rows is None else tile.reduce("sum", scores, own.rows))
    slope = mul(found, own.weights)
    if _apart(pull):
        slope = tile.apply(Fn.WHERE, tile.apply(Fn.LT, 0.0, product), slope, 0.0)
    done: list[Node] = []
    for d, total in zip(own.dims, sums if pull.spec.grad_q is not None else [], strict=False):
        read = tile.cast(own.key(key, d), own.spec.dtype)
        if own.rows is None or not _apart(pull):
            done.append(add(total, tile.reduce("sum", mul(tile.cast(read, "float32"), slope), c.keys)))
        else:
            done.append(tile.dot(tile.cast(slope, own.spec.dtype), read, c.keys, total, precision))
    if pull.spec.grad_weights is not None:
        done.append(add(sums[-1], tile.reduce("sum", mul(active, found), c.keys)))
    return done


def _write(pull: _Pull, sums: list[Node]) -> list[Tensor]:
    """Round and store what was asked for."""
    spec, own = pull.spec, pull.c.own
    shape: tuple[str | int, ...] = ("B", "TQ", spec.index.heads, spec.index.dim)
    place, written = (own.batch, own.token, own.head), []
    if spec.grad_q is not None:
        written.append(Tensor(spec.grad_q, spec.out_dtype, shape))
        for d in own.dims:
            value = tile.cast(sums.pop(0), spec.out_dtype)
            tile.store(written[-1], *place, d.index(), value=value, bounds=dict(own.bounds))
    if spec.grad_weights is not None:
        written.append(Tensor(spec.grad_weights, spec.out_dtype, shape[:3]))
        value = tile.cast(mul(sums.pop(0), spec.index.scale), spec.out_dtype)
        tile.store(written[-1], *place, value=value, bounds=dict(own.bounds))
    return written


def default(spec: IndexGradQ, target: str) -> Schedule:
    """As the loss; twice the warps where the attention of all keys is computed again."""
    found = divergence.walk(spec.index, target)
    return replace(found, warps=8) if spec.loss is not None and spec.loss.dense is not None else found
