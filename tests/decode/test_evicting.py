"""Decoding with a cache that evicts: prefill and steps are one forward, in memory that does not grow."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import sparsec
from sparsec.ir.error import InputError
from sparsec.oracle import check, oracle

KNOBS: dict[str, Any] = {"window": 8, "keep": 3, "chunk": 4}
SIZES: dict[str, Any] = {"B": 1, "H": 2, "HKV": 1, "D": 16, "DV": 16, "F": 16}


def steps(made: sparsec.Compiled, cache: Any, x: dict[str, Tensor], first: int, counts: tuple[int, ...]) -> Tensor:
    found = list[Tensor]()
    for count in counts:
        out = made.decode(cache, **{name: t[:, first : first + count] for name, t in x.items()})
        assert isinstance(out, Tensor)
        found, first = [*found, out], first + count
    return torch.cat(found, 1)


@pytest.mark.parametrize(("dtype", "window"), [("float32", 8), ("bfloat16", 8), ("float32", 0)])
def test_a_prefill_and_steps_are_one_forward(dtype: str, window: int) -> None:
    made = sparsec.compile(sparsec.preset("lola", **KNOBS | {"window": window}), target="interpreter")
    x = sparsec.inputs(made.variant, dtype=dtype, T=33, **SIZES)
    cache: Any = made.init_cache(1)
    early = steps(made, cache, x, 0, (17, 1))
    size, kept = cache.nbytes, cache.snapshot()
    late = steps(made, cache, x, 18, (1, 3, 1, 10))
    right = oracle(made.variant, x)
    assert isinstance(right, Tensor) and check(torch.cat([early, late], 1), right, dtype)
    assert cache.nbytes == size and cache.length == 33
    cache.restore(kept)
    assert torch.equal(steps(made, cache, x, 18, (1, 3, 1, 10)), late)


def test_tokens_that_do_not_fit() -> None:
    made = sparsec.compile(sparsec.preset("lola", **KNOBS), target="interpreter")
    x = sparsec.inputs(made.variant, T=2, **SIZES)
    with pytest.raises(InputError, match="a step takes q, fq, fk, v, k"):
        made.decode(made.init_cache(1), **{name: t for name, t in x.items() if name != "fk"})
    with pytest.raises(InputError, match="3 sequences"):
        made.decode(made.init_cache(3), **x)
    with pytest.raises(InputError, match="no pages"):
        made.init_cache(1, page=64)
