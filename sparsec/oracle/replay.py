"""Decoding by replay: the truth of a cache. Each step sees what the cache kept, and noise where it dropped rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, Protocol, cast

import torch
from torch import Tensor

from sparsec.ir.lengths import Lengths, lengths
from sparsec.ir.node import Node
from sparsec.ir.op import Op
from sparsec.ir.variant import Variant
from sparsec.oracle.form import FormName
from sparsec.oracle.summary import summarise
from sparsec.oracle.truth import evaluation
from sparsec.oracle.values import Chosen, Memory, plain
from sparsec.scalar.evaluate import evaluate
from sparsec.scalar.expr import Expr
from sparsec.scalar.walk import depends_on

NOISE = 1e3
"""How large dropped rows are made: whatever still reads one is far off."""

Rows = Mapping[str, tuple[int | None, int, int]]
"""By input: rows that stay before each query (None: all), rows pinned at the start, tokens per row."""


class States(Protocol):
    """The states of one bank: the input at which they begin, which output leaves them, a sequence's shape and its
    declared first states, None where they are zero."""

    @property
    def name(self) -> str: ...
    @property
    def output(self) -> int: ...
    @property
    def shape(self) -> tuple[Expr, ...]: ...
    @property
    def initial(self) -> str | None: ...


def replay(
    variant: Variant, inputs: Mapping[str, Tensor], steps: Sequence[int], kept: Rows, form: FormName = "vector",
    states: Sequence[States] = (),
) -> tuple[Tensor, ...]:  # fmt: skip
    """The outputs of all queries in fp64, decoded in steps of so many tokens each from an empty cache.

    ``inputs`` are those of the forward call, queries as many as keys. ``kept`` is the cache: what it drops, and rows
    of chunks that are not complete, are noise to a step. Summaries are brought up to date from what is kept; ``states``
    begin where the step before left them.
    """
    length, summaries, found, end = lengths(variant), dict[Node, Memory](), list[tuple[Tensor, ...]](), 0
    banks = {held.name: _first(held, inputs, variant) for held in states}
    given = {n: x for n, x in inputs.items() if n in variant.inputs}
    for count in steps:
        start, end = end, end + count
        seen = banks | {n: _seen(variant, length, n, x, (start, end), kept) for n, x in given.items()}
        ev = evaluation(variant, seen, form, start)
        for node in variant.nodes:
            if node.op is Op.SUMMARY and node.word("fn") != "given":
                memory = ev.whole(node.src[0])
                assert isinstance(memory, Memory)
                summaries[node] = _updated(node, memory, summaries.get(node), start)
                ev._whole[node] = summaries[node]
        values = [ev.whole(node) for node in variant.outputs]
        lists = [v.ids if isinstance(v, Chosen) else plain(v) for v in values]
        found.append(tuple(lists))
        banks = {held.name: lists[held.output] for held in states}
    last = {held.output for held in states}
    both = enumerate(zip(*found, strict=True))
    return tuple(parts[-1] if n in last else torch.cat(parts, dim=1) for n, parts in both)


def _first(held: States, inputs: Mapping[str, Tensor], variant: Variant) -> Tensor:
    """The states before any token."""
    pairs = [(d, s) for n, spec in variant.inputs.items() if n in inputs
             for d, s in zip(spec.shape, inputs[n].shape, strict=True)]  # fmt: skip
    dims = {str(dim.value): size for dim, size in pairs if dim.head == "var"}
    shape = (dims["B"], *(int(evaluate(d, dims)) for d in held.shape))
    return torch.zeros(shape) if held.initial is None else inputs[held.initial].expand(shape)


def _seen(variant: Variant, length: Lengths, name: str, x: Tensor, span: tuple[int, int], kept: Rows) -> Tensor:
    """An input as a step sees it: the new queries, or the rows so far with noise for those that are gone."""
    start, end = span
    shape = variant.inputs[name].shape
    if len(shape) > 1 and name not in kept and depends_on(shape[1], *length.query_names):
        return x[:, start:end]
    if name not in kept:
        return x
    window, sinks, unit = kept[name]
    x = x[:, : -(-end // unit)].clone()
    if end % unit:
        x[:, end // unit :] = _noise(x[:, end // unit :])
    gone = max(start + 1 - (start + 1 if window is None else window), 0)
    if gone > sinks:
        x[:, sinks:gone] = _noise(x[:, sinks:gone])
    return x


def _noise(x: Tensor) -> Tensor:
    return torch.full_like(x, -1) if not x.is_floating_point() else NOISE * torch.randn_like(x)


def _updated(node: Node, memory: Memory, before: Memory | None, start: int) -> Memory:
    """A summary whose windows that end before the new tokens are as they were; the others are computed anew."""
    size, stride, fn = node.integer("size"), node.integer("stride"), cast(Literal["mean", "max"], node.word("fn"))
    settled = max((start - size) // stride + 1, 0)

    def field(x: Tensor, old: Tensor | None) -> Tensor:
        new = summarise(x[:, settled * stride :], size, stride, fn)
        return new if old is None else torch.cat([old[:, :settled], new], dim=1)

    k = field(memory.k, None if before is None else before.k)
    if node.word("fields") == "k":
        return Memory(k, None)
    assert memory.v is not None
    return Memory(k, field(memory.v, None if before is None else before.v))
