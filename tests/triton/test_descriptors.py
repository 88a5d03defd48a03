"""TMA descriptors: which loads take one, and which tensors forbid it."""

from __future__ import annotations

import pytest
import torch

from sparsec.backends.triton.address import stride_limits
from sparsec.backends.triton.arguments import descriptor_arguments, signature
from sparsec.backends.triton.build import LaunchError, arguments, launch
from sparsec.backends.triton.descriptors import Descriptor, descriptor_refusal
from sparsec.scalar.fn import Fn
from sparsec.testing.tile.attention import chunks, window, window_program
from sparsec.testing.tile.cases import CASES
from sparsec.tile import build as tile
from sparsec.tile.language import Tensor
from sparsec.tile.schedule import Schedule

BOX = Descriptor("k_desc", Tensor("k", "bfloat16", ("B", "T", "H", 64)), (0, 2, 1, 3), (1, 1, 16, 64))


def test_boxes_of_rows_take_descriptors_heads_before_tokens() -> None:
    found = descriptor_arguments(window_program(64, 1024, 64, 32, 2, "bfloat16"), Schedule(descriptors=True))
    assert [(d.name, d.dims, d.block) for d in found] == [
        ("q_desc", (0, 2, 1, 3), (1, 1, 64, 64)),
        ("k_desc", (0, 2, 1, 3), (1, 1, 32, 64)),
        ("v_desc", (0, 2, 1, 3), (1, 1, 32, 64)),
    ]


def test_rows_that_are_no_box_keep_pointers() -> None:
    found = descriptor_arguments(chunks().program, Schedule(descriptors=True))
    assert [d.name for d in found] == ["k_desc", "v_desc"]
    assert descriptor_arguments(CASES["gather"]().program, Schedule(descriptors=True)) == ()


def test_without_the_schedules_wish_there_are_none() -> None:
    assert descriptor_arguments(window().program, Schedule()) == ()


@pytest.mark.parametrize(
    ("dtype", "row", "columns", "whole_rows", "taken"),
    [
        ("bfloat16", 128, 64, False, True),
        ("float32", 128, 32, False, True),
        ("bfloat16", 128, 64, True, False),
        ("bfloat16", 128, 128, True, True),
        ("bfloat16", 128, 32, False, False),
        ("bfloat16", 192, 64, False, False),
        ("bfloat16", 80, 64, False, False),
        ("bfloat16", 80, 16, False, False),
    ],
)
def test_parts_of_rows_are_boxes_where_they_are_lines_of_rows_of_a_power_of_two(
    dtype: str, row: int, columns: int, whole_rows: bool, taken: bool
) -> None:
    with tile.Builder() as builder:
        n, e = builder.axis("n", 16), builder.axis("e", columns)
        v, column = Tensor("v", dtype, ("T", row)), tile.iota(e)
        column = tile.apply(Fn.ADD, tile.apply(Fn.MUL, tile.program_id(0), columns), column)
        out = Tensor("out", dtype, (16, columns))
        tile.store(out, tile.iota(n), tile.iota(e), value=tile.load(v, tile.iota(n), column))
        program = builder.program("part", [v, out], [("T", "int32")], (2,))
    found = descriptor_arguments(program, Schedule(descriptors=True, whole_rows=whole_rows))
    assert [d.block for d in found] == [(16, columns)] * taken


def tensor(length: int = 64) -> torch.Tensor:
    """k of ``BOX``."""
    return torch.zeros(2, length, 4, 64, dtype=torch.bfloat16)


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (tensor().transpose(2, 3).contiguous().transpose(2, 3), "its last stride is 4; TMA needs 1"),
        (torch.zeros(2 * 64 * 4 * 64 + 1, dtype=torch.bfloat16)[1:].view(2, 64, 4, 64), "is not a multiple of 16"),
        (torch.zeros(2, 64, 4, 68, dtype=torch.bfloat16)[..., :64], "stride 68 of dimension 2 is not a multiple of 16"),
        (tensor(8), "dimension 1 has 8 elements, fewer than the box's 16"),
        (tensor(65), "dimension 1 has 65 elements, but T is 64"),
        (tensor()[:1].expand(2, -1, -1, -1), "dimension 0 is one element 2 times"),
    ],
)
def test_tensors_that_forbid_descriptors_say_why(made: torch.Tensor, message: str) -> None:
    assert message in str(descriptor_refusal(BOX, made, {"T": 64}))


@pytest.mark.parametrize(
    "made",
    [
        tensor(),
        tensor().transpose(1, 2).contiguous().transpose(1, 2),
        tensor().as_strided((1, 64, 4, 64), (0, 256, 64, 1)),  # one element once
    ],
)
def test_tensors_that_allow_them(made: torch.Tensor) -> None:
    assert descriptor_refusal(BOX, made, {"T": 64}) is None


def test_arguments_come_in_order() -> None:
    case = window()
    tensors = case.tensors()
    schedule = Schedule(descriptors=True)
    args = arguments(case.program, schedule, tensors, case.params)
    assert len(args) == len(signature(case.program, schedule))
    assert args[0] is tensors["q"] and args[5:8] == [75, 4, 2] and args[8:11] == [75 * 4 * 16, 4 * 16, 16]
    assert [d.block_shape for d in args[-3:]] == [[1, 1, 16, 16]] * 3


def test_a_last_dimension_with_gaps_is_refused() -> None:
    case = window()
    tensors = case.tensors()
    tensors["q"] = torch.zeros(2, 75, 4, 32)[..., ::2]
    with pytest.raises(
        LaunchError, match=r"q: shape \(2, 75, 4, 16\), strides .*; it needs 4 dimensions, the last dense"
    ):
        arguments(case.program, Schedule(), tensors, case.params)


def test_strides_beyond_what_a_tile_can_address_are_refused() -> None:
    case = window(rows=16)
    limit = stride_limits(case.program)["q_s1"]
    assert limit * 15 < 2**31
    tensors = case.tensors()
    tensors["q"] = torch.zeros(16).as_strided((1, 1, 1, 16), (1, limit + 1, 1, 1))
    with pytest.raises(LaunchError, match=f"q_s1 is {limit + 1}; offsets inside a tile fit 32 bits up to {limit}"):
        arguments(case.program, Schedule(), tensors, case.params)


def test_a_grid_that_no_gpu_takes_is_refused() -> None:
    with pytest.raises(LaunchError, match=r"\(1, 1, 65536\).*65535 programs in the second and third"):
        launch(None, (1, 1, 65536), (), Schedule())
