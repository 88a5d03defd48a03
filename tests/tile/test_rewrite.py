"""Rewriting of tile programs: without a rule a program is its copy, with one only what the rule names changes."""

from __future__ import annotations

import re

import pytest
import torch

from sparsec.scalar.fn import Fn
from sparsec.testing.tile.cases import CASES
from sparsec.tile import build as tile
from sparsec.tile.interpreter import interpret
from sparsec.tile.language import Node, Program, Tensor, TileOp
from sparsec.tile.printer import to_text
from sparsec.tile.rewrite import Mapper, accessed, accesses, rewrite
from sparsec.tile.verify import verify


def _keep(node: Node, args: tuple[Node, ...]) -> Node | None:
    return None


@pytest.mark.parametrize("name", CASES)
def test_without_a_rule_a_program_is_rewritten_to_itself(name: str) -> None:
    case = CASES[name]()
    program = case.program
    copy = rewrite(program, _keep, program.tensors)
    verify(copy)
    assert _unnumbered(copy) == _unnumbered(program)
    tensors = case.tensors()
    interpret(copy, tensors, case.params)
    assert case.error(tensors) <= case.tolerance or "half" in name or "bfloat16" in name


def _unnumbered(program: Program) -> list[str]:
    """The lines of a program without the numbers of values, which may come in another order."""
    return sorted(re.sub(r"%\d+", "%", line) for line in to_text(program).splitlines())


def _scaled(factor: int) -> Program:
    """out[i] = factor * x[i] for 4 elements, and sums[0] = the sum of a loop over them."""
    with tile.Builder() as b:
        n = b.axis("n", 4)
        x, out, sums = (Tensor(name, "int32", (4,)) for name in ("x", "out", "sums"))
        tile.store(out, tile.iota(n), value=tile.apply(Fn.MUL, tile.load(x, tile.iota(n)), factor))

        def add(i: Node, total: Node) -> list[Node]:
            return [tile.apply(Fn.ADD, total, tile.apply(Fn.MUL, tile.load(x, i), tile.param("F")))]

        (total,) = tile.loop(0, 4, 1, [tile.const(0)], add)
        tile.store(sums, tile.const(0), value=total)
        return b.program("scaled", [x, out, sums], [("F", "int32")], [1])


def _run(program: Program, **tensors: torch.Tensor) -> None:
    interpret(program, tensors, {"F": 2})


def test_a_rule_shifts_loads_and_leaves_stores() -> None:
    def shifted(node: Node, args: tuple[Node, ...]) -> Node | None:
        if node.op is not TileOp.LOAD:
            return None
        return accessed(node, [tile.apply(Fn.TRUNCMOD, tile.apply(Fn.ADD, args[0], 1), 4)])

    program = _scaled(3)
    x, out, sums = torch.tensor([1, 2, 4, 8]).int(), torch.zeros(4).int(), torch.zeros(4).int()
    _run(rewrite(program, shifted, program.tensors), x=x, out=out, sums=sums)
    assert out.tolist() == [6, 12, 24, 3]
    assert sums[0] == 30


def test_a_rule_may_give_another_value_inside_a_loop_that_is_apart() -> None:
    """F becomes the loop's own variable: a value that stood outside of the loop moves into it."""
    program = _scaled(1)
    (loop,) = (n for n in tile.reachable(program.effects) if n.op is TileOp.LOOP)
    inner = next(n for n in tile.reachable([loop]) if n.op is TileOp.INDEX)

    def by_variable(node: Node, args: tuple[Node, ...]) -> Node | None:
        return mapper(inner) if node.op is TileOp.PARAM and 0 in mapper.open else None

    with tile.Builder() as builder:
        mapper = Mapper(program, by_variable, frozenset({0}))
        mapper.region()
        made = builder.program("apart", program.tensors, program.params, program.grid)
    x, out, sums = torch.tensor([1, 2, 4, 8]).int(), torch.zeros(4).int(), torch.zeros(4).int()
    _run(made, x=x, out=out, sums=sums)
    assert sums[0] == 0 * 1 + 1 * 2 + 2 * 4 + 3 * 8


def test_accesses_are_all_loads_and_stores() -> None:
    names = [access.tensor.name for _, access in accesses(_scaled(1))]
    assert sorted(names) == ["out", "sums", "x", "x"]
