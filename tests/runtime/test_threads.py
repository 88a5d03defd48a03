"""Threads that share a layer: kernels are built and documents remembered as if each thread were alone."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import pytest
import torch
from torch import Tensor

import sparsec
from sparsec.runtime.packed import documents
from sparsec.runtime.packed.documents import Given
from sparsec.runtime.packed.inputs import packed_inputs

THREADS = 4
SIZES: dict[str, Any] = {"H": 2, "HKV": 1, "D": 16, "DV": 16}


@pytest.fixture
def often() -> Iterator[None]:
    """Threads take turns after a few instructions."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


def at_once(work: Callable[[], list[Tensor]]) -> list[list[Tensor]]:
    """What threads give that begin at the same time."""
    begin = Barrier(THREADS)

    def begun(_: int) -> list[Tensor]:
        begin.wait()
        return work()

    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(begun, range(THREADS)))


def test_first_calls_at_the_same_time(often: None) -> None:
    """Four threads compile, build the kernels of both directions and define the operators."""
    variant = sparsec.preset("streaming", window=5, sinks=1)
    x = sparsec.inputs(variant, T=9, **SIZES)
    shared = sparsec.compile(variant, target="interpreter")

    def work() -> list[Tensor]:
        found = []
        for layer in (shared, sparsec.compile(variant, target="interpreter")):
            leaves = {name: t.clone().requires_grad_() for name, t in x.items()}
            out = layer(**leaves)
            assert isinstance(out, Tensor)
            found += [out.detach(), *torch.autograd.grad(out.square().sum(), list(leaves.values()))]
        return found

    first, *others = at_once(work)
    for other in others:
        torch.testing.assert_close(other, first, rtol=0, atol=0)


def test_documents_of_another_thread_are_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another thread's call comes in between finding that documents are those of the last call and using them."""
    layer = sparsec.compile(sparsec.preset("full"), target="interpreter")
    calls = layer.packed
    x = packed_inputs(layer, (4, 6), SIZES, "float32")
    mine, theirs = (
        Given(torch.tensor(ends, dtype=torch.int32), None, None, None, None) for ends in ([0, 4, 10], [0, 10])
    )
    tensors = [x[name] for name in layer.names]
    own, same = calls.documents(tensors, mine), documents._same

    def interrupted(kept: Any, key: Any) -> bool:
        found = same(kept, key)
        monkeypatch.setattr(documents, "_same", same)
        calls.documents(tensors, theirs)
        return found

    monkeypatch.setattr(documents, "_same", interrupted)
    assert calls.documents(tensors, mine) is own
