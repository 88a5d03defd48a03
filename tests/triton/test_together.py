"""Kernels of a plan are compiled side by side before the first of them is launched."""

from __future__ import annotations

from inspect import signature
from threading import Barrier, get_ident
from typing import Any

import pytest

from sparsec.backends.triton.together import ahead, together
from sparsec.tile.schedule import Schedule

active = pytest.importorskip("triton.runtime._async_compile").active_mode


class Kernel:
    """Stands in for a kernel of Triton's: its compilation ends only while another one's runs."""

    def __init__(self, name: str, meet: Barrier) -> None:
        self.name, self.meet = name, meet
        self.told: dict[str, Any] = {}
        self.thread, self.done = 0, False

    def warmup(self, *args: Any, grid: tuple[int, ...], **told: Any) -> None:
        self.told = told
        submit = active.get().submit
        left = len(signature(submit).parameters) - 3
        submit(self.name, self.compile, self.finish, *[lambda *told: None] * left)

    def compile(self) -> str:
        self.meet.wait(20)
        self.thread = get_ident()
        if self.name == "wrong":
            raise ValueError("no such instruction")
        return self.name

    def finish(self, made: str) -> None:
        self.done = made == self.name


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda process: {0, 1, 2})


@pytest.mark.usefixtures("threads")
def test_all_are_compiled_at_once_and_done_at_the_end() -> None:
    meet = Barrier(3)
    kernels = [Kernel(name, meet) for name in ("a", "wrong", "c")]
    with together() as can:
        assert can
        for n, kernel in enumerate(kernels):
            ahead(kernel, [], Schedule(warps=2 + 2 * n), chained=n == 2)
    assert [k.done for k in kernels] == [True, False, True], "one that does not compile says so when it is launched"
    assert get_ident() not in [k.thread for k in kernels]
    assert [k.told["num_warps"] for k in kernels] == [2, 4, 6]
    assert ["launch_pdl" in k.told for k in kernels] == [False, False, True]
    assert active.get() is None


@pytest.mark.usefixtures("threads")
def test_inside_another_it_joins_that() -> None:
    meet = Barrier(2)
    with together(), together() as can:
        assert can
        kernels = [Kernel(name, meet) for name in "ab"]
        for kernel in kernels:
            ahead(kernel, [], Schedule(), chained=False)
    assert all(k.done for k in kernels) and active.get() is None
