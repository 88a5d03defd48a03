"""Random tile programs: the compiled kernel computes what the interpreter says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsec.backends.tvm.emit import emit
from sparsec.backends.tvm.pipeline import build
from sparsec.scalar.fn import Fn
from sparsec.tile import build as tile
from sparsec.tile.interpreter import interpret
from sparsec.tile.language import Axis, Node, Program, Tensor
from sparsec.tile.schedule import Schedule

SIZES = (1, 2, 3, 4, 5, 8, 12, 16, 32, 48)
BINARY = (Fn.ADD, Fn.SUB, Fn.MUL, Fn.MAXIMUM, Fn.MINIMUM)
UNARY = (Fn.NEG, Fn.ABS, Fn.TANH, Fn.SIGMOID)
Step = Callable[["Machine"], None]


@dataclass
class Machine:
    """Values made so far, all fp32 over subsets of the axes m, n, k (m and k of one size)."""

    axes: dict[str, Axis]
    values: list[Node]

    def pick(self, number: int) -> Node:
        """Some value."""
        return self.values[number % len(self.values)]

    def over(self, x: Node, number: int) -> Axis | None:
        """Some axis of a value."""
        return x.axes[number % len(x.axes)] if x.axes else None


def combine(a: int, b: int, fn: Fn) -> Step:
    """Two values."""
    return lambda s: s.values.append(tile.apply(fn, s.pick(a), s.pick(b)))


def change(a: int, fn: Fn) -> Step:
    """One value."""
    return lambda s: s.values.append(tile.apply(fn, s.pick(a)))


def fold(a: int, axis: int, kind: str) -> Step:
    """A reduction or a running sum."""

    def step(s: Machine) -> None:
        x = s.pick(a)
        over = s.over(x, axis)
        if over is not None:
            s.values.append(tile.scan(x, over) if kind == "scan" else tile.reduce(kind, x, over))

    return step


def turn(a: int) -> Step:
    """m becomes k, or k becomes m."""

    def step(s: Machine) -> None:
        x = s.pick(a)
        m, k = s.axes["m"], s.axes["k"]
        if (m in x.axes) != (k in x.axes):
            s.values.append(tile.rename(x, m, k) if m in x.axes else tile.rename(x, k, m))

    return step


def product(a: int, b: int, axis: int) -> Step:
    """A dot over an axis that is the only one shared."""

    def step(s: Machine) -> None:
        x, y = s.pick(a), s.pick(b)
        shared = set(x.axes) & set(y.axes)
        if len(shared) == 1:
            s.values.append(tile.dot(x, y, shared.pop()))

    return step


def choose(a: int, b: int, axis: int) -> Step:
    """One value where an index is small, else the other; or a conditional mask."""

    def step(s: Machine) -> None:
        x, y = s.pick(a), s.pick(b)
        over = s.over(x, axis)
        if over is None:
            return
        near = tile.apply(Fn.LE, tile.iota(over), tile.apply(Fn.ADD, tile.program_id(0), over.size // 2))
        odd = tile.apply(Fn.EQ, tile.program_id(0), 1)
        s.values.append(tile.mask_if(odd, near, x, -1.0) if a % 2 else tile.apply(Fn.WHERE, near, x, y))

    return step


def repeat(a: int, b: int, c: int) -> Step:
    """A loop that carries two values; one is read by the other's update, or they change places."""

    def step(s: Machine) -> None:
        x, y = s.pick(a), s.pick(b)

        def body(i: Node, u: Node, w: Node) -> list[Node]:
            grown = tile.apply(Fn.MUL, tile.apply(Fn.ADD, u, tile.cast(i, "float32")), 0.5)
            if c % 3 == 0 and u.axes == w.axes:
                return [w, grown]
            total = tile.reduce("sum", u, u.axes[0]) if u.axes else u
            shrunk = tile.apply(Fn.TANH, tile.apply(Fn.ADD, w, total)) if set(total.axes) <= set(w.axes) else w
            return [grown, shrunk]

        s.values.extend(tile.loop(tile.program_id(0), 3, 1, [x, y], body))

    return step


numbers = st.integers(0, 30)
steps = st.one_of(
    st.builds(combine, numbers, numbers, st.sampled_from(BINARY)),
    st.builds(change, numbers, st.sampled_from(UNARY)),
    st.builds(fold, numbers, numbers, st.sampled_from(("sum", "max", "min", "scan"))),
    st.builds(turn, numbers),
    st.builds(product, numbers, numbers, numbers),
    st.builds(choose, numbers, numbers, numbers),
    st.builds(repeat, numbers, numbers, numbers),
)


def program(m: int, n: int, recipe: list[Step]) -> Program:
    """Two loads, then the recipe; the last few values are stored."""
    with tile.Builder() as b:
        axes = {"m": b.axis("m", m), "n": b.axis("n", n), "k": b.axis("k", m)}
        x, y = Tensor("x", "float32", ("B", m, n)), Tensor("y", "float32", ("B", n))
        at = tile.program_id(0)
        state = Machine(axes, [tile.load(x, at, tile.iota(axes["m"]), tile.iota(axes["n"]))])
        state.values.append(tile.load(y, at, tile.iota(axes["n"]), bounds={1: max(1, n - 1)}, other=0.5))
        for step in recipe:
            step(state)
        outs = []
        for number, value in enumerate(dict.fromkeys(state.values[-3:])):
            shape: tuple[str | int, ...] = ("B", *(a.size for a in value.axes), 1)
            outs.append(Tensor(f"out{number}", "float32", shape))
            tile.store(outs[-1], at, *(tile.iota(a) for a in value.axes), 0, value=value)
        return b.program("random", [x, y, *outs], [("B", "int32")], [tile.param("B")])


@settings(max_examples=40)
@given(st.sampled_from(SIZES), st.sampled_from(SIZES), st.lists(steps, min_size=2, max_size=9), st.permutations("mnk"))
def test_random_programs_agree(m: int, n: int, recipe: list[Step], lanes: list[str]) -> None:
    made = program(m, n, recipe)
    generator = torch.Generator().manual_seed(m * n)
    shapes = {t.name: [2 if d == "B" else int(d) for d in t.shape] for t in made.tensors}
    mine = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    want = {name: x.clone() for name, x in mine.items()}
    interpret(made, want, {"B": 2})
    strides = [s for t in made.tensors for s in mine[t.name].stride()[:-1]]
    function = build(emit(made, Schedule(lanes=tuple(lanes))))["main"]
    function(*(mine[t.name].view(-1) for t in made.tensors), 2, *strides)
    for name, x in want.items():
        torch.testing.assert_close(mine[name], x, rtol=3e-5, atol=3e-5 * float(x.abs().max()))
