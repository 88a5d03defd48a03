"""Torch on the GPU that is here: graphs, operators, streams, and the quick way of a call against the slow one."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import Tensor

from sparsec.runtime.compiled import Compiled, compile
from sparsec.testing.inputs.variants import small
from sparsec.testing.whole.case import WholeCase, on

pytestmark = pytest.mark.gpu

NAMES = ["msa-window", "alibi-lse", "hsa-window", "nsa", "nsa-given", "moba"]


def drawn(name: str, tokens: int = 131, dtype: str = "bfloat16") -> dict[str, Tensor]:
    """Inputs on the GPU."""
    return WholeCase(name, (tokens, tokens, None), (4, 2), (64, 64), dtype).inputs("cuda")


def called(compiled: Compiled, given: dict[str, Tensor]) -> Tensor:
    """The first output."""
    found = compiled(None, **given)
    return found[0] if isinstance(found, tuple) else found


@pytest.mark.parametrize("name", NAMES)
def test_the_quick_way_gives_the_same_bits(name: str) -> None:
    compiled, given = on(name, "cuda"), drawn(name)
    tensors = [given[n] for n in compiled.names]
    ready = compiled.ready(tensors)
    slow = ready.run(given)
    for _ in range(3):
        others = [x.clone() for x in tensors]  # other addresses, the same layout
        outputs = ready(others)
        assert ready.quick is not None
        assert all(torch.equal(slow[n], x) for n, x in zip(ready.outputs, outputs, strict=True))


@pytest.mark.parametrize("name", [n for n in NAMES if n != "nsa-given"])
def test_calls_are_made_in_one_step(name: str) -> None:
    compiled, given = on(name, "cuda"), drawn(name)
    slow = compiled.ready([given[n] for n in compiled.names]).run(given)
    plan = compiled.ready([given[n] for n in compiled.names]).plan
    for _ in range(3):
        called(compiled, given)
        assert compiled.tables.straight is not None
        found = compiled.tables.straight({n: x.clone() for n, x in given.items()}, None)
        assert found is not None
        outputs = found if isinstance(found, tuple) else (found,)
        assert all(torch.equal(slow[n], x) for n, x in zip(plan.outputs, outputs, strict=True))


def test_launches_from_another_thread() -> None:
    compiled, given = on("nsa", "cuda"), drawn("nsa")
    wanted, found = called(compiled, given), []
    thread = threading.Thread(target=lambda: found.append(called(compiled, given)))  # it has no CUDA context yet
    thread.start()
    thread.join()
    assert torch.equal(found[0], wanted)


@pytest.mark.parametrize("name", NAMES)
def test_odd_addresses_go_the_slow_way_and_give_the_same(name: str) -> None:
    compiled, given = on(name, "cuda"), drawn(name)
    wanted = called(compiled, given)
    moved = {}
    for n, x in given.items():
        moved[n] = torch.empty(x.numel() + 1, dtype=x.dtype, device="cuda")[1:].view(x.shape).copy_(x)
    torch.testing.assert_close(called(compiled, moved), wanted, rtol=2e-2, atol=2e-2)


def test_the_current_stream_is_used() -> None:
    compiled, given = on("nsa", "cuda"), drawn("nsa")
    wanted, side = called(compiled, given), torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        q = torch.zeros_like(given["q"])
        torch.cuda._sleep(20_000_000)  # what follows on another stream would read the zeros
        q.copy_(given["q"])
        found = called(compiled, {**given, "q": q})
    side.synchronize()
    assert torch.equal(found, wanted)


@pytest.mark.parametrize("name", NAMES)
def test_graphs_capture_a_call(name: str) -> None:
    compiled, given = on(name, "cuda"), drawn(name)
    called(compiled, given)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = called(compiled, given)
    for n in ("q", "v"):
        given[n].normal_()
    graph.replay()
    assert torch.equal(out, called(compiled, given))


@pytest.mark.parametrize("name", ["msa-window", "nsa", "moba"])
def test_graphs_capture_forward_and_backward(name: str) -> None:
    compiled, given = on(name, "cuda"), drawn(name)
    leaves = {n: x.requires_grad_(x.is_floating_point()) for n, x in given.items()}
    floats = [x for x in leaves.values() if x.requires_grad]
    seed = torch.randn_like(called(compiled, leaves))

    def step() -> tuple[Tensor | None, ...]:
        return torch.autograd.grad(called(compiled, leaves), floats, seed, allow_unused=True)

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = step()
    with torch.no_grad():
        given["q"].normal_()
    graph.replay()
    for mine, right in zip(found, step(), strict=True):
        assert (mine is None) == (right is None)
        if mine is not None and right is not None:
            torch.testing.assert_close(mine, right)


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("name", ["msa-window", "nsa"])
def test_opcheck(name: str, grad: bool) -> None:
    compiled, given = on(name, "cuda"), drawn(name)
    tensors = [given[n].requires_grad_(grad and given[n].is_floating_point()) for n in compiled.names]
    torch.library.opcheck(compiled.operator, (*tensors, None))


@pytest.mark.parametrize("name", ["msa-window", "nsa"])
def test_compiled_by_torch_with_its_backward(name: str) -> None:
    compiled = on(name, "cuda")
    run = torch.compile(lambda given: called(compiled, given) * 2, fullgraph=True)
    for tokens in (131, 67, 200):
        one, other = drawn(name, tokens), drawn(name, tokens)
        for given, call in ((one, run), (other, lambda x: called(compiled, x) * 2)):
            for x in given.values():
                x.requires_grad_(x.is_floating_point())
            call(given).float().square().sum().backward()
        for n in one:
            if one[n].grad is not None:
                torch.testing.assert_close(one[n].grad, other[n].grad, rtol=2e-2, atol=2e-2)


def test_autocast() -> None:
    compiled, given = on("nsa", "cuda"), drawn("nsa", dtype="float32")
    with torch.autocast("cuda", dtype=torch.bfloat16):
        found = called(compiled, given)
    halves = {n: x.bfloat16() if x.is_floating_point() else x for n, x in given.items()}
    assert found.dtype == torch.bfloat16 and torch.equal(found, called(compiled, halves))


@pytest.mark.parametrize("name", ["msa-window", "nsa", "nsa-given"])
def test_a_profiler_still_sees_launches(name: str) -> None:
    from triton import knobs

    compiled, given = compile(small(name), "cuda"), drawn(name)
    seen: list[object] = []
    called(compiled, given)
    hook = seen.append
    knobs.runtime.launch_enter_hook.add(hook)
    try:
        called(compiled, given)
    finally:
        knobs.runtime.launch_enter_hook.remove(hook)
    kernels = compiled.ready([given[n] for n in compiled.names]).plan.kernels
    assert len(seen) >= len(kernels)
