"""Warps with roles where a tensor allows no descriptor: other tiles run then, and what is offered knows it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from sparsec.lower.descriptors import without_roles
from sparsec.lower.registry import default, known, lower_kernel, space
from sparsec.plan.plan import Kernel
from sparsec.plan.specs import Piece, TiledAttention
from sparsec.runtime.kernel import BuiltKernel
from sparsec.runtime.launch import source
from sparsec.runtime.predict import predict
from sparsec.runtime.target import GPUS
from sparsec.scalar.expr import constant, var
from sparsec.testing.kernels.tiled import TiledCase, truth
from sparsec.tile.interpreter import interpret

QUERY, KEY = var("i"), var("j")
CAUSAL = Piece("k", "v", "TK", KEY <= QUERY)
SPEC = TiledAttention("attention", "q", (CAUSAL,), "out", "lse", 2, 1, 64, 64, 0.125, "bfloat16")
HOPPER = GPUS["sm_90"]
NAMES = ("B", "TQ", "TK", "q_offset")
KERNEL = Kernel(SPEC, ("q", "k", "v"), ("out", "lse"), (), tuple((n, var(n)) for n in NAMES), (), ())
ROLES = default(SPEC, HOPPER.name)


def case(keys: int) -> tuple[TiledCase, dict[str, torch.Tensor]]:
    """Inputs of 150 queries at the end of some keys, and their outputs."""
    made = TiledCase(SPEC, {"B": 2, "TQ": 150, "TK": keys, "q_offset": keys - 150})
    out = torch.full((2, 150, 2, 64), float("nan"), dtype=torch.bfloat16)
    return made, {**made.draw(), "out": out, "lse": torch.full((2, 150, 2), float("nan"))}


def unaligned(x: torch.Tensor) -> torch.Tensor:
    """The same numbers in rows that begin anywhere."""
    return torch.nn.functional.pad(x, (0, 3))[..., :-3]


def bound(x: dict[str, torch.Tensor], params: Mapping[str, int], folder: Path) -> Any:
    """What runs on these tensors, and over which grid."""
    built = BuiltKernel(KERNEL, ROLES, HOPPER, folder)
    ((program, bind),) = built._binds
    return bind([x[t.name] for t in program.tensors], params)


def test_the_default_has_roles_and_boxes_keep_them(tmp_path: Path) -> None:
    made, x = case(300)
    launch = bound(x, made.params, tmp_path)
    assert ROLES.has_roles and launch.args[3] == ROLES and launch.args[1] == (2, 2, 2)


def test_tiles_are_small_where_a_tensor_allows_no_box(tmp_path: Path) -> None:
    made, x = case(300)
    launch = bound(x | {"k": unaligned(x["k"])}, made.params, tmp_path)
    assert launch.args[3] == without_roles(ROLES) and launch.args[1] == (3, 2, 2)
    assert launch.args[3].registers == 0 and launch.args[3].warps == 4


def test_tiles_are_small_where_there_are_fewer_keys_than_a_box_has(tmp_path: Path) -> None:
    made = TiledCase(SPEC, {"B": 2, "TQ": 150, "TK": 100, "q_offset": 0})
    x = {**made.draw(), "out": torch.zeros(2, 150, 2, 64, dtype=torch.bfloat16), "lse": torch.zeros(2, 150, 2)}
    assert bound(x, made.params, tmp_path).args[3] == without_roles(ROLES)


def test_its_numbers_are_those_of_the_oracle(tmp_path: Path) -> None:
    made, x = case(300)
    bind = BuiltKernel(KERNEL, ROLES, HOPPER, tmp_path)._binds[0][1]
    x = x | {"k": unaligned(x["k"])}
    other, _ = bind._arguments([x[t.name] for t in bind.program.tensors], made.params)  # type: ignore[attr-defined]
    interpret(other.program, {t.name: x[t.name] for t in other.program.tensors}, made.params)
    exact = truth(made, x)["out"]
    assert float((x["out"].double() - exact).norm() / exact.norm()) < 3e-3


@pytest.mark.parametrize("dim", [64, 128])
def test_a_bias_in_place_of_scores_is_offered_no_roles(dim: int) -> None:
    """Its turns have one product, which the printer refuses."""
    alone = replace(CAUSAL, bias=(KEY - QUERY) * 0.25)
    spec = replace(SPEC, pieces=(alone,), head_dim=dim, value_dim=dim)
    offered = (default(spec, HOPPER.name), *known(spec, HOPPER.name))
    assert not any(s.has_roles for s in offered) and space(spec, HOPPER.name)["producer"] == (False,)
    added = replace(spec, pieces=(replace(alone, bias=var("score", "float") + constant(0.5)),))
    assert space(added, HOPPER.name)["producer"] == (False, True)


def test_groups_take_turns_only_where_boxes_are_loaded() -> None:
    """Without descriptors all warps are alike, whatever the schedule asks for: the same program, the same time."""
    alike = replace(ROLES, descriptors=False)
    plain = replace(alike, producer=False)
    dims = {"B": 1, "TQ": 4096, "TK": 4096, "q_offset": 0}
    first, second = (lower_kernel(SPEC, s) for s in (alike, plain))
    assert source(first.steps[0], HOPPER) == source(second.steps[0], HOPPER)
    times = [predict(KERNEL, made, s, HOPPER, dims).seconds for made, s in ((first, alike), (second, plain))]
    assert times[0] == times[1]
