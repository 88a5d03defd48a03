"""Calls made by the C++ module give what calls from Python give, and it steps aside where it must."""

from __future__ import annotations

import ctypes
import gc
import struct
import sys
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from sparsec.runtime.cache import usable
from sparsec.runtime.compiled import Compiled, compile
from sparsec.runtime.env import Env
from sparsec.runtime.native.build import BuildError, built, compiler, load, native
from sparsec.runtime.records import Records
from sparsec.testing.triton.stub_driver import Stub, hooks, quick_of
from sparsec.testing.whole.case import WholeCase, on

try:
    compiler()
except BuildError:
    pytest.skip("there is no C++ compiler", allow_module_level=True)


@pytest.fixture(scope="module")
def stub() -> Iterator[Stub]:
    with Stub(load(built(usable(Env().cache_dir)))) as found:
        yield found


def calling(name: str, stub: Stub, told: Any = None) -> tuple[Compiled, dict[str, Tensor], dict[str, Tensor]]:
    """A variant whose calls are made in C++, its inputs, and what its buffers should hold."""
    case = WholeCase(name, (35, 35, None), (2, 1), (16, 16))
    compiled, given = compile(on(name, "interpreter").variant, "interpreter"), case.inputs()
    compiled.tables.module = stub.module
    tensors = [given[n] for n in compiled.names]
    ready = compiled.ready(tensors)
    ready.quick = quick_of(compiled, ready, tensors, stub, told)
    assert ready.quick.native is not None
    return compiled, given, ready.run(given)


def as_tuple(found: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return found if isinstance(found, tuple) else (found,)


@pytest.mark.parametrize("name", ["streaming", "hsa-window", "nsa", "moba", "alibi-lse"])
def test_a_call_in_one_step_gives_the_same_bits(name: str, stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled, given, buffers = calling(name, stub)
    plan = compiled.ready([given[n] for n in compiled.names]).plan
    monkeypatch.setattr(Compiled, "forward", None)  # nothing of the other way is needed
    before = stub.launches
    for _ in range(3):
        found = as_tuple(compiled(None, **{n: x.clone() for n, x in given.items()}))
        assert len(found) == len(plan.outputs)
        assert all(torch.equal(buffers[n], x) for n, x in zip(plan.outputs, found, strict=True))
    assert stub.launches - before >= 3 * len(plan.kernels)


@pytest.mark.parametrize("name", ["msa-window", "nsa"])
def test_the_halves_give_the_same_bits(name: str, stub: Stub) -> None:
    case = WholeCase(name, (35, 35, None), (2, 1), (16, 16))
    compiled, given = compile(on(name, "interpreter").variant, "interpreter"), case.inputs()
    compiled.tables.module = stub.module
    tensors = [given[n] for n in compiled.names]
    forward = compiled.ready(tensors, None, tuple(n for n in compiled.names if given[n].is_floating_point()))
    halves, results = forward.halves, forward(tensors)
    assert halves is not None
    kept = [tensors[n] for n in halves.kept_inputs] + [results[n] for n in halves.kept_results]
    kept += [torch.randn_like(results[halves.outputs[n]]) for n in halves.cotangents]
    backward = compiled.backward(halves, kept, forward.dims)
    assert compiled.backward(halves, kept, dict(forward.dims)) is backward
    for ready, inputs in ((forward, tensors), (backward, kept)):
        found = quick_of(compiled, ready, inputs, stub).run(inputs)
        slow = ready.run(dict(zip(ready.names, inputs, strict=True)))
        assert found is not None and all(torch.equal(slow[n], x) for n, x in zip(ready.outputs, found, strict=True))


class Watching(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


class Named(Tensor):
    pass


CONTEXTS: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "a dispatch mode": Watching,
    "deterministic": lambda: deterministic(),
}


class deterministic:
    def __enter__(self) -> None:
        torch.use_deterministic_algorithms(True)

    def __exit__(self, *error: object) -> None:
        torch.use_deterministic_algorithms(False)


CHANGES: dict[str, Callable[[dict[str, Tensor]], dict[str, Any]]] = {
    "a gradient": lambda x: {**x, "q": x["q"].clone().requires_grad_()},
    "a subclass": lambda x: {**x, "q": x["q"].as_subclass(Named)},
    "another shape": lambda x: {n: torch.cat([t, t], 1) for n, t in x.items()},
    "other strides": lambda x: {**x, "q": x["q"].transpose(1, 2).contiguous().transpose(1, 2)},
    "another dtype": lambda x: {n: t.half() for n, t in x.items()},
    "an odd address": lambda x: {**x, "q": torch.empty(x["q"].numel() + 1)[1:].view(x["q"].shape).copy_(x["q"])},
    "one too few": lambda x: {n: t for n, t in x.items() if n != "q"},
    "one too many": lambda x: {**x, "other": x["q"]},
    "no tensor": lambda x: {**x, "q": 3},
    "a meta tensor": lambda x: {**x, "q": x["q"].to("meta")},
}


def straight(compiled: Compiled, inputs: dict[str, Any], q_offset: Any = None) -> Any:
    assert compiled.tables.straight is not None
    return compiled.tables.straight(inputs, q_offset)


Made = tuple[Compiled, dict[str, Tensor]]


@pytest.fixture(scope="module")
def once(stub: Stub) -> Made:
    """One for all tests that only call it."""
    return calling("streaming", stub)[:2]


@pytest.fixture
def streaming(once: Made) -> Made:
    """The same, whatever a test before made it forget."""
    compiled, given = once
    compiled.ready([given[n] for n in compiled.names])
    return once


@pytest.mark.parametrize("change", CHANGES)
def test_other_inputs_go_the_other_way(change: str, streaming: Made) -> None:
    compiled, given = streaming
    assert straight(compiled, given) is not None
    assert straight(compiled, CHANGES[change](given)) is None
    assert straight(compiled, given) is not None


@pytest.mark.parametrize("context", CONTEXTS)
def test_who_changes_what_torch_does_goes_the_other_way(
    context: str, streaming: tuple[Compiled, dict[str, Tensor]]
) -> None:
    compiled, given = streaming
    with CONTEXTS[context]():
        assert straight(compiled, given) is None


def test_a_transform_goes_the_other_way(streaming: Made) -> None:
    compiled, given = streaming
    seen = []

    def one(q: Tensor) -> Tensor:
        seen.append(straight(compiled, {**given, "q": q}))
        return q

    torch.vmap(one)(given["q"].expand(2, *given["q"].shape))
    torch.func.grad(lambda q: one(q).sum())(given["q"])
    assert seen == [None, None]


def test_gradients_that_nobody_records_do_not_matter(streaming: Made) -> None:
    compiled, given = streaming
    leaves = {n: x.clone().requires_grad_() for n, x in given.items()}
    with torch.no_grad():
        assert straight(compiled, leaves) is not None
    with torch.inference_mode():
        assert straight(compiled, leaves).is_inference()
    assert straight(compiled, leaves) is None


@pytest.mark.parametrize("q_offset", [-1, 3, True, 1.0, torch.tensor(0)])
def test_another_position_is_another_call(q_offset: Any, streaming: Made) -> None:
    compiled, given = streaming
    assert straight(compiled, given, q_offset) is None


def test_a_schedule_a_record_and_a_hook_are_seen_at_once(stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    told = hooks()
    compiled, given, _ = calling("streaming", stub, told)
    assert straight(compiled, given) is not None
    told.launch_enter_hook.calls.append(print)
    assert straight(compiled, given) is None
    told.launch_enter_hook = None
    assert straight(compiled, given) is not None
    told.launch_exit_hook = print
    assert straight(compiled, given) is None
    told.launch_exit_hook = None
    monkeypatch.setattr(Records, "generation", Records.generation + 1)
    assert straight(compiled, given) is None
    compiled, given, _ = calling("streaming", stub)
    (kernel,) = compiled.ready([given[n] for n in compiled.names]).plan.kernels
    compiled.schedules[kernel.name] = replace(compiled.schedule(kernel, {}), rows=32)
    assert straight(compiled, given) is None


def test_given_indices_are_still_checked(stub: Stub) -> None:
    compiled, given, _ = calling("nsa-given", stub)
    assert straight(compiled, given) is None


def test_a_failed_launch_is_an_error(stub: Stub) -> None:
    compiled, given, _ = calling("streaming", stub)
    stub.answer = 700
    try:
        with pytest.raises(RuntimeError, match="CUDA error 700"):
            compiled(None, **given)
    finally:
        stub.answer = 0


def test_nothing_is_kept_alive(stub: Stub) -> None:
    compiled, given, _ = calling("streaming", stub)
    before = sys.getrefcount(given["q"])
    died = weakref.ref(straight(compiled, given))
    after = sys.getrefcount(given["q"])
    assert died() is None and after == before
    ready = compiled.ready([given[n] for n in compiled.names])
    assert ready.quick is not None
    kernel, native, call = weakref.ref(ready.quick.steps[0][1]), ready.quick.native, weakref.ref(ready)
    stub.forget()
    del ready
    compiled._calls.clear()
    compiled.tables._made.clear()
    compiled.tables.straight = None
    gc.collect()
    assert call() is None and kernel() is not None  # a kernel must not be unloaded while it may be launched
    del native
    gc.collect()
    assert kernel() is None


def test_tensor_maps_are_made_once_for_an_address(stub: Stub) -> None:
    asked: list[int] = []

    def encode(address: int) -> bytes:
        asked.append(address)
        return struct.pack("q", address) * 16

    seen: list[int] = []

    def look(at: int) -> int:
        seen.append(ctypes.c_int64.from_address(at).value if at % 64 == 0 else -1)
        return 0

    launch = (1, (1, 1, 1), 32, 0, bytes(128), (0,), (), ((0, 0, encode),))
    call = stub.module.Call((torch.zeros(4),), (torch.zeros(1),), (0,), None, (), (launch,), hooks(), None)
    others = [torch.zeros(4) for _ in range(3)]
    stub.instead = look
    try:
        for x in [*others, *others]:
            assert call.run([x]) is not None
    finally:
        stub.instead = None
    wanted = [x.data_ptr() for x in others]
    assert asked == wanted and seen == wanted * 2


def test_without_a_compiler_calls_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", str(tmp_path / "none"))
    assert native(tmp_path / "folder") is None
    monkeypatch.setenv("CXX", "false")
    with pytest.warns(UserWarning, match="calls are made from Python"):
        assert native(tmp_path / "other") is None
