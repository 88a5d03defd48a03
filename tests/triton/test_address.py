"""Splitting an index into scalars and tiles keeps its value, and the bound on its tiles is true."""

from __future__ import annotations

from collections.abc import Callable

import torch
from hypothesis import given
from hypothesis import strategies as st

from sparsec.backends.triton.address import Term, largest, narrow, split
from sparsec.scalar.fn import Fn
from sparsec.tile import build as tile
from sparsec.tile.arithmetic import FUNCTIONS
from sparsec.tile.language import Node, TileOp

PARAMS = {"p": 37, "q": 1000}
Make = Callable[[tile.Builder], Node]


def binary(fn: Fn) -> Callable[[tuple[Make, Make]], Make]:
    """``fn`` of two index expressions."""
    return lambda ab: lambda b: tile.apply(fn, ab[0](b), ab[1](b))


def by_constant(fn: Fn) -> Callable[[tuple[Make, int]], Make]:
    """``fn`` of an index expression and a constant."""
    return lambda ac: lambda b: tile.apply(fn, ac[0](b), ac[1])


leaves: st.SearchStrategy[Make] = st.one_of(
    st.sampled_from(sorted(PARAMS)).map(lambda name: lambda b: tile.param(name)),
    st.sampled_from((4, 8)).map(lambda size: lambda b: tile.iota(b._axes.get(f"a{size}") or b.axis(f"a{size}", size))),
    st.integers(0, 50).map(lambda value: lambda b: tile.const(value)),
)
indices = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.tuples(inner, inner).map(binary(Fn.ADD)),
        st.tuples(inner, inner).map(binary(Fn.SUB)),
        st.tuples(inner, st.integers(-3, 9)).map(by_constant(Fn.MUL)),
        st.tuples(inner, st.integers(1, 5)).map(by_constant(Fn.TRUNCDIV)),
        st.tuples(inner, st.integers(1, 5)).map(by_constant(Fn.TRUNCMOD)),
    ),
    max_leaves=8,
)


def value(node: Node) -> torch.Tensor:
    """A node over the axes a4 and a8, in this order."""
    if node.op is TileOp.CONST:
        return torch.tensor(node.attrs[0], dtype=torch.int64)
    if node.op is TileOp.PARAM:
        return torch.tensor(PARAMS[str(node.attrs[0])])
    if node.op is TileOp.IOTA:
        return torch.arange(8) if node.axes[0].size == 8 else torch.arange(4)[:, None]
    fn = node.attrs[0]
    assert isinstance(fn, Fn)
    return FUNCTIONS[fn](*(value(a) for a in node.args))


def part(term: Term) -> torch.Tensor:
    """The value of a summand."""
    return term.factor * (torch.tensor(1) if term.node is None else value(term.node))


@given(indices)
def test_the_summands_add_up(make: Make) -> None:
    with tile.Builder() as b:
        index = make(b)
    found = split(index)
    total = sum((part(t) for t in (*found.scalars, *found.tiles)), torch.tensor(0))
    assert bool((total == value(index)).all())
    assert all(t.node is None or not t.node.axes for t in found.scalars)


@given(indices)
def test_narrow_tiles_are_no_larger_than_said(make: Make) -> None:
    with tile.Builder() as b:
        found = split(make(b))
    if narrow(found):
        for node in (t.node for t in found.tiles):
            assert node is not None and int(value(node).abs().max()) <= (largest(node) or 0)
