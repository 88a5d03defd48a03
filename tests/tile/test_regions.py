"""Values move out of loops that they do not depend on; effects stay where they are listed."""

from __future__ import annotations

from sparsec.scalar.fn import Fn
from sparsec.testing.tile.cases import CASES
from sparsec.tile import build as tile
from sparsec.tile.language import Node, Tensor, TileOp
from sparsec.tile.printer import to_text
from sparsec.tile.regions import TOP, regions

X = Tensor("x", "float32", ("T", 16))
OUT = Tensor("out", "float32", ("T", 16))


def test_what_a_loop_does_not_change_runs_before_it() -> None:
    with tile.Builder() as b:
        d = b.axis("d", 16)

        def visit(i: Node, acc: Node) -> list[Node]:
            still = tile.apply(Fn.MUL, tile.load(X, 0, tile.iota(d)), 2.0)
            return [tile.apply(Fn.ADD, acc, tile.apply(Fn.MUL, still, tile.load(X, i, tile.iota(d))))]

        (acc,) = tile.loop(0, tile.param("T"), 1, [tile.full(0.0, d)], visit)
        tile.store(OUT, 0, tile.iota(d), value=acc)
        found = regions(b.program("sum", [X, OUT], [("T", "int32")], [1]))
    assert [n.op for n in found.nodes[0]].count(TileOp.LOAD) == 1
    assert [n.op for n in found.nodes[TOP]].count(TileOp.LOAD) == 1


def test_an_effect_stays_in_its_loop_even_if_it_does_not_depend_on_it() -> None:
    with tile.Builder() as b:
        d = b.axis("d", 16)

        def visit(_: Node) -> list[Node]:
            tile.store(OUT, 0, tile.iota(d), value=tile.full(1.0, d))
            return []

        tile.loop(0, tile.param("T"), 1, [], visit)
        found = regions(b.program("maybe", [OUT], [("T", "int32")], [1]))
    assert [n.op for n in found.nodes[0]] == [TileOp.INDEX, TileOp.STORE]


def test_the_text_of_a_program_is_stable() -> None:
    assert to_text(CASES["window"]().program) == to_text(CASES["window"]().program)
