"""Joint plans cut in two: by hand, and of every small variant that has a backward."""

from __future__ import annotations

import pytest

from sparsec.ir.node import Node
from sparsec.plan.plan import Buffer, Kernel, Plan
from sparsec.plan.specs import Combine
from sparsec.runtime.joint import joint
from sparsec.runtime.split import split
from sparsec.scalar.expr import var
from sparsec.testing.whole.case import on


def kernel(name: str, reads: str, writes: str) -> Kernel:
    """A kernel by the names of what it reads and writes."""
    spec = Combine(name, "sum", (), (), (), name, None, 1, 1, "float32")
    none: tuple[tuple[str, Node, str], ...] = ()
    return Kernel(spec, tuple(reads.split()), tuple(writes.split()), (), (), none, none)


def plan(inputs: str, outputs: str, *kernels: tuple[str, str, str]) -> Plan:
    """A plan from (name, reads, writes)."""
    made = [kernel(*k) for k in kernels]
    every = dict.fromkeys([*inputs.split(), *(n for k in made for n in k.writes)])
    roles = {**dict.fromkeys(outputs.split(), "output"), **dict.fromkeys(inputs.split(), "input")}
    buffers = tuple(Buffer(n, (var("T"),), "float32", roles.get(n, "temporary")) for n in every)
    return Plan("x", tuple(made), buffers, tuple(outputs.split()), ())


JOINT = plan(
    "q k v do",
    "o dq dk",
    ("means", "k", "m"),
    ("pick", "q m", "ids scores"),
    ("attend", "q k v ids", "o lse"),
    ("invert", "ids", "inverse"),
    ("delta", "o do", "d"),
    ("grad_q", "q k v ids lse d do", "dq"),
    ("grad_k", "q k v inverse lse d do", "dk"),
)


def named(kernels: tuple[Kernel, ...]) -> list[str]:
    """Kernels as their names."""
    return [k.name for k in kernels]


def roles(cut: Plan) -> dict[str, str]:
    """Buffers with their roles."""
    return {b.name: b.role for b in cut.buffers}


def test_what_the_outputs_need_comes_first() -> None:
    cut = split(JOINT, ["o"])
    assert named(cut.forward.kernels) == ["means", "pick", "attend"]
    assert named(cut.backward.kernels) == ["invert", "delta", "grad_q", "grad_k"]


def test_buffers_that_cross_are_saved() -> None:
    cut = split(JOINT, ["o"])
    assert cut.saved == ("ids", "o", "lse")
    assert cut.forward.outputs == ("o", "ids", "lse") and cut.backward.outputs == ("dq", "dk")


def test_roles_in_the_halves() -> None:
    cut = split(JOINT, ["o"])
    assert roles(cut.forward) == {
        **dict.fromkeys("qkv", "input"), **dict.fromkeys(["m", "scores"], "temporary"),
        **dict.fromkeys(["o", "ids", "lse"], "output"),
    }  # fmt: skip
    assert roles(cut.backward) == {
        **dict.fromkeys([*"qkv", "do", "ids", "o", "lse"], "input"), **dict.fromkeys(["inverse", "d"], "temporary"),
        **dict.fromkeys(["dq", "dk"], "output"),
    }  # fmt: skip


def test_a_gradient_that_the_forward_half_makes_is_saved() -> None:
    cut = split(plan("x do", "o dx", ("one", "x", "o dx"), ("two", "do", "unused")), ["o"])
    assert cut.saved == ("dx",) and cut.forward.outputs == ("o", "dx") and cut.backward.outputs == ("dx",)


def test_a_gradient_that_is_an_input_takes_no_kernel() -> None:
    cut = split(plan("x do", "o do", ("one", "x", "o")), ["o"])
    assert cut.backward.kernels == () and cut.backward.outputs == () and cut.saved == ()


def test_outputs_that_do_not_begin_the_plan_are_a_bug() -> None:
    with pytest.raises(AssertionError):
        split(JOINT, ["dq"])


@pytest.mark.parametrize("name", ["full", "msa-window", "nsa", "moba", "alibi-lse"])
def test_halves_of_a_variant_hold_together(name: str) -> None:
    """Every half writes what it returns, reads only what is given, and the lean plan runs no more than the forward."""
    compiled = on(name, "interpreter")
    static = {"B": 1, "H": 4, "HKV": 2, "D": 32, "DV": 32, "DR": 32}
    floats = [n for n, spec in compiled.graph.inputs.items() if spec.dtype == "float"]
    found = joint(compiled.graph, floats, static, "float32")
    for half in (found.split.forward, found.split.backward):
        known = {b.name for b in half.buffers if b.role == "input"}
        for step in half.kernels:
            assert known.issuperset(step.reads), step.name
            known.update(step.writes)
        assert known.issuperset(half.outputs)
    lean = compiled.plan(static, "float32")
    assert [k.name for k in lean.kernels] == [k.name for k in found.split.forward.kernels]
    assert len(found.names) == len(found.kept_inputs) + len(found.kept_results) + len(found.cotangents)
