"""The tile interpreter against fp64 references, its rounding against torch's, and the mistakes that it must catch."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from sparsec.scalar.fn import Fn
from sparsec.testing.tile.case import Case, randn
from sparsec.testing.tile.cases import CASES
from sparsec.tile import build as tile
from sparsec.tile.interpreter import EVALUATE, FIXED, interpret
from sparsec.tile.language import Node, Program, Tensor, TileOp
from sparsec.tile.memory import AccessError
from sparsec.tile.scalars import grid_of

ROUNDING = {"float32": 2e-6, "float16": 2e-3, "bfloat16": 1.2e-2}


def storage(case: Case) -> str:
    """The coarsest dtype among a case's tensors."""
    dtypes = {t.dtype for t in case.program.tensors}
    return next((d for d in ("bfloat16", "float16") if d in dtypes), "float32")


@pytest.mark.parametrize("name", CASES)
def test_in_fp64_every_program_is_exact(name: str) -> None:
    case = CASES[name]()
    tensors = {k: v.double() if v.is_floating_point() else v for k, v in case.tensors().items()}
    interpret(case.program, tensors, case.params, mode="exact")
    assert case.error(tensors) < 1e-14


@pytest.mark.parametrize("name", CASES)
def test_in_storage_precision_every_program_is_as_close_as_its_dtype(name: str) -> None:
    case = CASES[name]()
    tensors = case.tensors()
    interpret(case.program, tensors, case.params)
    assert case.error(tensors) < ROUNDING[storage(case)]


def test_every_op_is_interpreted() -> None:
    assert EVALUATE.keys() | FIXED.keys() | {TileOp.INDEX, TileOp.CARRY} == set(TileOp)


def test_the_cases_use_every_op() -> None:
    from sparsec.tile.regions import regions

    used = {n.op for make in CASES.values() for nodes in regions(make().program).nodes.values() for n in nodes}
    assert used == set(TileOp)


def product(dtype: str, precision: str = "ieee", size: int = 16) -> Program:
    """out = cast(x y)."""
    with tile.Builder() as b:
        m, n, d = (b.axis(name, size) for name in "mnd")
        x, y, out = (Tensor(name, dtype, (size, size)) for name in ("x", "y", "out"))
        left, right = tile.load(x, tile.iota(m), tile.iota(d)), tile.load(y, tile.iota(d), tile.iota(n))
        value = tile.cast(tile.dot(left, right, d, precision=precision), dtype)
        tile.store(out, tile.iota(m), tile.iota(n), value=value)
        return b.program("product", [x, y, out], [], [1])


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_rounding_is_torchs_bit_for_bit(dtype: str) -> None:
    g = torch.Generator().manual_seed(1)
    x, y = (randn(g, 16, 16, dtype=dtype) for _ in range(2))
    out = torch.empty(16, 16, dtype=getattr(torch, dtype))
    interpret(product(dtype), {"x": x, "y": y, "out": out}, {})
    truth = torch.einsum("md,dn->mn", x.float(), y.float()).to(out.dtype)
    assert torch.equal(out, truth)


def test_tf32_drops_thirteen_bits() -> None:
    x = torch.eye(16) * (1 + 2**-11 + 2**-12)
    out = torch.empty(16, 16)
    interpret(product("float32", "tf32"), {"x": x, "y": torch.eye(16), "out": out}, {})
    assert torch.equal(out, torch.eye(16) * (1 + 2**-10))


def copy(bound: int | None, other: float | None = 0.0, shift: int = 0) -> Program:
    """out[i] = x[i + shift] over 16 elements."""
    with tile.Builder() as b:
        n = b.axis("n", 16)
        x, out = (Tensor(name, "float32", ("T",)) for name in ("x", "out"))
        at = tile.apply(Fn.ADD, tile.iota(n), shift)
        limits: dict[int, tile.Value] | None = None if bound is None else {0: bound}
        tile.store(out, tile.iota(n), value=tile.load(x, at, bounds=limits, other=other))
        return b.program("copy", [x, out], [], [1])


def test_reading_past_the_end_names_tensor_index_and_limit() -> None:
    with pytest.raises(AccessError, match=r"index 15 in dimension 0 of x is outside 0 … 9"):
        interpret(copy(None), {"x": torch.ones(10), "out": torch.ones(16)}, {})


def test_a_bound_that_is_too_large_is_caught() -> None:
    with pytest.raises(AccessError, match=r"index 11 in dimension 0 of x"):
        interpret(copy(12), {"x": torch.ones(10), "out": torch.ones(16)}, {})


def test_a_negative_index_is_caught_even_below_a_bound() -> None:
    with pytest.raises(AccessError, match=r"index -2 in dimension 0 of x"):
        interpret(copy(10, shift=-2), {"x": torch.ones(10), "out": torch.ones(16)}, {})


def test_outside_its_bound_a_load_gives_what_was_asked_for() -> None:
    out = torch.empty(16)
    interpret(copy(10, other=3.0), {"x": torch.ones(10), "out": out}, {})
    assert out.tolist() == [1.0] * 10 + [3.0] * 6


@pytest.mark.parametrize("poison", [math.nan, 1e30])
def test_outside_its_bound_a_load_of_nothing_is_poison(poison: float) -> None:
    out = torch.empty(16)
    interpret(copy(10, other=None), {"x": torch.ones(10), "out": out}, {}, poison=poison)
    assert torch.equal(out[10:].nan_to_num(-1.0), torch.full((6,), poison).nan_to_num(-1.0))


def number(where: int, size: int = 1) -> Program:
    """Every grid point writes its number plus an iota to out[where]."""
    with tile.Builder() as b:
        n, out = b.axis("n", size), Tensor("out", "int32", (4,))
        index = tile.apply(Fn.ADD, tile.apply(Fn.MUL, tile.iota(n), 0), where)
        tile.store(out, index, value=tile.apply(Fn.ADD, tile.iota(n), tile.program_id(0)))
        return b.program("number", [out], [("P", "int32")], [tile.param("P")])


def test_two_grid_points_that_disagree_about_an_element_are_caught() -> None:
    with pytest.raises(AccessError, match="grid point 1 overwrites elements of out"):
        interpret(number(2), {"out": torch.zeros(4, dtype=torch.int32)}, {"P": 2})


def test_a_store_that_writes_one_element_twice_is_caught() -> None:
    with pytest.raises(AccessError, match="different values to one element of out"):
        interpret(number(2, size=4), {"out": torch.zeros(4, dtype=torch.int32)}, {"P": 1})


def test_some_points_of_the_grid_can_be_run_alone() -> None:
    case = CASES["gather"]()
    tensors = case.tensors()
    interpret(case.program, tensors, case.params, points=[(1,)])
    rows = tensors["out"].isnan().any(-1)
    assert rows.tolist() == [True] * 8 + [False] * 8 + [True] * 5


@pytest.mark.parametrize("name", CASES)
def test_points_side_by_side_give_what_each_gives_alone(name: str) -> None:
    case = CASES[name]()
    together, alone = case.tensors(), case.tensors()
    interpret(case.program, together, case.params, mode="storage")
    for point in itertools.product(*map(range, grid_of(case.program, case.params))):
        interpret(case.program, alone, case.params, mode="storage", points=[point])
    for one, other in zip(together.values(), alone.values(), strict=True):
        torch.testing.assert_close(one, other, rtol=ROUNDING[storage(case)], atol=1e-6, equal_nan=True)


def ragged(trips: str) -> Program:
    """out[p] = the sum of x[p, i] over i in range(P - p, P - p + trips), visited two by two; seen[p, i] marks them."""
    with tile.Builder() as b:
        x, out, seen = (
            Tensor(name, "int32", shape) for name, shape in (("x", (5, 12)), ("out", (5,)), ("seen", (5, 12)))
        )
        p = tile.program_id(0)
        lo = tile.apply(Fn.SUB, 5, p)
        count = tile.load(Tensor(trips, "int32", (5,)), p)

        def visit(i: Node, total: Node) -> list[Node]:
            tile.store(seen, p, i, value=tile.const(1))
            return [tile.apply(Fn.ADD, total, tile.load(x, p, i))]

        (total,) = tile.loop(lo, tile.apply(Fn.ADD, lo, count), 2, [tile.const(0)], visit)
        tile.store(out, p, value=total)
        return b.program("ragged", [x, out, seen, Tensor(trips, "int32", (5,))], [], [5])


@pytest.mark.parametrize("counts", [[0, 1, 5, 2, 7], [0, 0, 0, 0, 0], [4, 4, 4, 4, 4]])
def test_each_point_ends_its_loop_by_itself(counts: list[int]) -> None:
    x = torch.randint(-99, 99, (5, 12), generator=torch.Generator().manual_seed(0), dtype=torch.int32)
    out, seen = torch.full((5,), -7, dtype=torch.int32), torch.zeros(5, 12, dtype=torch.int32)
    interpret(ragged("n"), {"x": x, "out": out, "seen": seen, "n": torch.tensor(counts, dtype=torch.int32)}, {})
    want = torch.zeros_like(seen)
    for p, count in enumerate(counts):
        want[p, 5 - p : 5 - p + count : 2] = 1
    assert torch.equal(seen, want)
    assert torch.equal(out, (x * want).sum(1, dtype=torch.int32))


def test_a_point_that_is_done_may_stand_outside_its_tensors() -> None:
    """Rows of x end at 12: the loop of the longest list runs past the end of all others."""
    n = torch.tensor([7, 0, 0, 0, 0], dtype=torch.int32)
    tensors = {"x": torch.ones(5, 12, dtype=torch.int32), "out": torch.zeros(5, dtype=torch.int32)}
    seen = torch.zeros(5, 12, dtype=torch.int32)
    interpret(ragged("n"), {**tensors, "seen": seen, "n": n}, {})
    assert tensors["out"].tolist() == [4, 0, 0, 0, 0]
    with pytest.raises(AccessError, match="index 13 in dimension 1 of"):
        interpret(ragged("n"), {**tensors, "seen": seen, "n": n + 2}, {})


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"out": torch.ones(16)}, "tensor x is missing"),
        ({"x": torch.ones(4, 4), "out": torch.ones(16)}, r"x has shape \(4, 4\); it needs 1 dimensions"),
        ({"x": torch.ones(16).half(), "out": torch.ones(16)}, "x is torch.float16, the program declares float32"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(tensors: dict[str, torch.Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        interpret(copy(None), tensors, {})


def test_nan_survives_a_maximum() -> None:
    with tile.Builder() as b:
        n = b.axis("n", 16)
        x, out = Tensor("x", "float32", (16,)), Tensor("out", "float32", (2, 16))
        found = tile.load(x, tile.iota(n))
        tile.store(out, 0, tile.iota(n), value=tile.apply(Fn.MAXIMUM, found, 0.0))
        tile.store(out, 1, tile.iota(n), value=tile.apply(Fn.MINIMUM, 0.0, found))
        program = b.program("nans", [x, out], [], [1])
    tensors = {"x": torch.full((16,), torch.nan), "out": torch.zeros(2, 16)}
    interpret(program, tensors, {})
    assert tensors["out"].isnan().all()
