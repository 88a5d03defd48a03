"""The quick way of a repeated call gives what the slow way gives, and touches nothing that it should not."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import sparsec
from sparsec.backends.triton.again import Relaunch, known
from sparsec.backends.triton.box import Box
from sparsec.benchmarks.overhead import CASES, bare, prepared, seconds
from sparsec.frontends.preset import preset
from sparsec.ir.error import InputError
from sparsec.runtime.arena import STEP, placed
from sparsec.runtime.compiled import Compiled, compile
from sparsec.runtime.inputs import inputs
from sparsec.runtime.quick import Device, _shape, on_gpu
from sparsec.runtime.ready import Ready
from sparsec.testing.triton.stub_driver import learned
from sparsec.testing.whole.case import WholeCase, on
from sparsec.tile.schedule import Schedule

NAMES = ["streaming", "msa-random-alone", "hsa-window", "nsa", "moba", "alibi-lse"]
GPU = Device(current=lambda: -1, stream=lambda index: 0, watched=lambda: False)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", NAMES)
def test_the_second_call_gives_the_same_bits(name: str, dtype: str) -> None:
    compiled, first = compile(on(name, "cpu").variant, "cpu"), WholeCase(name, dtype=dtype).inputs()
    tensors = [first[n] for n in compiled.variant.inputs]
    slow = compiled.ready(tensors).run(first)
    for _ in range(3):
        outputs = compiled.forward(tensors)
        assert compiled.ready(tensors).quick is not None
        plan = compiled.ready(tensors).plan
        assert all(torch.equal(slow[n], x) for n, x in zip(plan.outputs, outputs, strict=True))


@pytest.mark.parametrize("name", ["hsa-window", "nsa", "moba", "alibi-lse"])
def test_addresses_in_one_block(name: str) -> None:
    """What a GPU's quick way does with addresses and with memory that is used again, on the CPU's memory."""
    compiled, given_ = compile(on(name, "interpreter").variant, "interpreter"), WholeCase(name).inputs()
    tensors = [given_[n] for n in compiled.variant.inputs]
    same_bits(compiled, compiled.ready(tensors), tensors)


def same_bits(compiled: Compiled, ready: Ready, tensors: list[Tensor]) -> None:
    """Addresses in one block, and a tensor for each buffer, give the same."""
    named = dict(zip(ready.names, tensors, strict=True))
    quick = on_gpu(ready, learned(compiled, ready, named), tensors, GPU)
    outputs, slow = quick.run(tensors), ready.run(named)
    assert outputs is not None
    assert all(torch.equal(slow[n], x) for n, x in zip(ready.outputs, outputs, strict=True))


@pytest.mark.parametrize("name", ["msa-window", "nsa", "alibi-lse"])
def test_addresses_in_one_block_of_the_halves(name: str) -> None:
    case = WholeCase(name, (35, 35, None), (2, 1), (16, 16))
    compiled, given_ = compile(on(name, "interpreter").variant, "interpreter"), case.inputs()
    tensors = [given_[n] for n in compiled.names]
    forward = compiled.ready(tensors, None, tuple(n for n in compiled.names if given_[n].is_floating_point()))
    halves, results = forward.halves, forward(tensors)
    assert halves is not None
    same_bits(compiled, forward, tensors)
    kept = [tensors[n] for n in halves.kept_inputs] + [results[n] for n in halves.kept_results]
    seeds = [torch.randn_like(results[halves.outputs[n]]) for n in halves.cotangents]
    same_bits(compiled, compiled.backward(halves, [*kept, *seeds], forward.dims), [*kept, *seeds])


def test_torchs_default_device_is_not_asked() -> None:
    """Of the first call, of the next, and of one without keys."""
    compiled, x = on("streaming", "cpu"), WholeCase("streaming", (21, 21, None)).inputs()
    with torch.device("meta"):
        found = [compiled(None, **x) for _ in range(3)]
        none = compiled(None, **{**x, "k": x["k"][:, :0], "v": x["v"][:, :0]})
    torch.testing.assert_close(found, [compiled(None, **x)] * 3, rtol=0, atol=0)
    assert isinstance(none, Tensor) and none.device.type == "cpu" and not none.any()


def test_an_odd_address_goes_the_slow_way() -> None:
    compiled, given_ = on("streaming", "interpreter"), WholeCase("streaming").inputs()
    tensors = [given_[n] for n in compiled.variant.inputs]
    quick = on_gpu(compiled.ready(tensors), [], tensors, GPU)
    assert quick.run(tensors) is not None
    moved = torch.empty(tensors[0].numel() + 1)[1:].view(tensors[0].shape)
    assert quick.run([moved, *tensors[1:]]) is None


@given(
    st.dictionaries(
        st.text(max_size=3),
        st.tuples(st.integers(0, 5).map(STEP.__mul__), st.tuples(st.integers(0, 6), st.integers(0, 6)).map(sorted)),
    )
)
def test_what_is_alive_at_once_lies_apart(drawn: dict[str, tuple[int, list[int]]]) -> None:
    needs = {name: (size, (life[0], life[1])) for name, (size, life) in drawn.items()}
    offsets, total = placed(needs)
    assert offsets.keys() == needs.keys() and total <= sum(size for size, _ in needs.values())
    for a, (size, (first, last)) in needs.items():
        assert offsets[a] + size <= total and offsets[a] % STEP == 0
        for b, (other, (begin, end)) in needs.items():
            if a != b and first <= end and begin <= last:
                assert offsets[a] + size <= offsets[b] or offsets[b] + other <= offsets[a]


def test_what_is_never_alive_at_once_shares_its_place() -> None:
    assert placed({"a": (512, (0, 1)), "b": (512, (2, 3)), "c": (256, (1, 2))})[1] == 768


def test_triton_is_launched_with_new_addresses_and_old_everything_else() -> None:
    calls: list[tuple[object, ...]] = []
    compiled = SimpleNamespace(run=lambda *args: calls.append(args), function=7, packed_metadata="meta")
    base = torch.zeros(4, dtype=torch.bfloat16)
    example = SimpleNamespace(base=base, shape=[4], strides=[1])
    run = Relaunch(compiled, (3, 2), [64, 128], [Box(1, example)])
    run([16, 32], 99)
    run([48, 32], 99)
    run([48, 64], 99)
    assert [c[:9] for c in calls] == [(3, 2, 1, 99, 7, "meta", None, None, None)] * 3
    assert [c[9:13] for c in calls] == [(16, 32, 64, 128), (48, 32, 64, 128), (48, 64, 64, 128)]
    boxes: list[Any] = [c[13] for c in calls]
    assert boxes[0] is boxes[1] and [b.base.data_ptr() for b in boxes] == [32, 32, 64]
    assert boxes[0].base.dtype is torch.bfloat16 and example.base is base


def test_the_installed_triton_launches_as_we_do() -> None:
    assert known()


def test_given_indices_are_looked_at_again_only_once_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[Tensor] = []
    compiled, given_ = on("nsa-given", "interpreter"), WholeCase("nsa-given").inputs()
    real = torch.aminmax

    def looking(x: Tensor) -> object:
        looks.append(x)
        return real(x)

    monkeypatch.setattr(torch, "aminmax", looking)
    for _ in range(3):
        compiled(None, **given_)
    assert len(looks) == 1
    given_["indices"][0, 0, 0, 0] = 99
    with pytest.raises(InputError, match="value 99"):
        compiled(None, **given_)
    given_["indices"][0, 0, 0, 0] = 0
    compiled(None, **given_)
    assert len(looks) == 3


def test_a_schedule_set_by_hand_is_used_at_once() -> None:
    compiled, given_ = compile(preset("streaming", window=4), "interpreter"), WholeCase("streaming").inputs()
    compiled(None, **given_)
    (kernel,) = compiled.ready(list(given_.values())).plan.kernels
    schedule = compiled.schedule(kernel, {})
    others = [rows for rows in (16, 32, 64) if rows != schedule.rows]
    for rows in others:
        compiled.schedules[kernel.name] = replace(schedule, rows=rows)
        compiled(None, **given_)
    assert compiled.builds == 1 + len(others)


@pytest.mark.parametrize("name", CASES)
def test_a_call_costs_little_beyond_its_launches(name: str) -> None:
    """A guard against slips of the quick way, four times what was measured."""
    compiled = compile(preset(name, **CASES[name]), "cpu")
    given_ = inputs(compiled.variant, T=64, H=4, HKV=1, D=64, DV=64)
    with torch.no_grad():
        _, quick = prepared(compiled, given_)
        over = seconds(lambda: compiled(None, **given_)) - seconds(bare(quick, given_, 0))
    assert over < 50e-6


def test_a_position_in_a_tensor_is_its_value() -> None:
    made = compile(preset("streaming"), "interpreter")
    x = sparsec.inputs(made.variant, B=1, TQ=3, TK=40, H=2, HKV=1, D=16, DV=16)
    where = torch.tensor(0)
    first = made(where, **x)
    where += 20
    again, there = made(where, **x), made(20, **x)
    assert isinstance(first, Tensor) and isinstance(again, Tensor) and isinstance(there, Tensor)
    assert torch.equal(again, there) and not torch.equal(again, first)
    with pytest.raises(InputError, match="q_offset"):
        made([3], **x)


def test_schedules_put_in_place_of_others_count() -> None:
    made = compile(preset("streaming"), "interpreter")
    held = made.schedules
    made.schedules = {"attend_out": Schedule(rows=16)}
    assert made.schedules is held and held["attend_out"].rows == 16


@pytest.mark.parametrize("size", [(), (0, 2), (3, 4)])
def test_outputs_of_any_size_are_made(size: tuple[int, ...]) -> None:
    """Of no dimensions too: a balance loss is one number."""
    made = torch.empty_like(_shape(size, torch.float32, "cpu"))
    assert made.shape == torch.Size(size) and made.is_contiguous()
