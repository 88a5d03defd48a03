"""What a compiled variant keeps of calls, plans and kernels has limits, and what was dropped is made again."""

from __future__ import annotations

import pytest
import torch

import sparsec
from sparsec.runtime import compiled as module
from sparsec.runtime.compiled import compile


def test_the_oldest_go_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_CALLS", 2)
    monkeypatch.setattr(module, "MOST_PLANS", 2)
    variant = sparsec.preset("streaming", window=4)
    made = compile(variant, "interpreter")
    first = sparsec.inputs(variant, T=5, H=1, HKV=1, D=16, DV=16)
    expected = made(None, **first)
    for heads in (2, 3, 4):
        made(None, **sparsec.inputs(variant, T=5, H=heads, HKV=1, D=16, DV=16))
    assert len(made._plans) == len(made._built) == len(made._calls) == 2 and made.builds == 4
    again = made(None, **first)
    assert isinstance(again, torch.Tensor) and isinstance(expected, torch.Tensor) and torch.equal(again, expected)
    assert made.builds == 5
