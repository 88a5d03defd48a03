"""A tensor that an op by fla's name needs, and that is not given, is named."""

from __future__ import annotations

import inspect
from collections.abc import Callable

import pytest
import torch

from sparsec import InputError
from sparsec.compat import fla

GATED = {
    "chunk_gla": "g",
    "chunk_gated_delta_rule": "g",
    "chunk_kda": "beta",
    "chunk_dplr_delta_rule": "gk",
    "chunk_rwkv7": "w",
    "chunk_gdn2": "g",
    "chunk_gated_delta_product": "beta",
    "chunk_hgrn": "g",
    "chunk_log_linear_attn": "g",
    "parallel_forgetting_attn": "g",
}


def demanded(call: Callable[..., object]) -> list[str]:
    """What a call cannot do without."""
    every = inspect.signature(call).parameters.items()
    return [n for n, p in every if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]


@pytest.mark.parametrize("op", GATED)
def test_a_tensor_that_is_needed_and_is_none_is_named(op: str) -> None:
    call = getattr(fla, op)
    x = torch.zeros(1, 2, 1, 4)
    names = demanded(call)
    given = {n: 1 if n == "num_householder" else None if n == GATED[op] else x for n in names}
    with pytest.raises(InputError, match=rf"{op}: {GATED[op]}: None.*give a tensor for {GATED[op]}"):
        call(**given)
    with pytest.raises(InputError, match=rf"{op}: {GATED[op]}: None"):
        call(*given.values())


CHUNK_SIZES = {
    "chunk_delta_rule": (128, "16, 32, or 64"),
    "chunk_gated_delta_rule": (8, "16, 32, or 64 for Gated Delta Rule"),
    "chunk_kda": (16, "either 32 or 64"),
    "chunk_gdn2": (32, "64 for GDN-2"),
    "chunk_iplr_delta_rule": (48, "a power of 2"),
    "chunk_gsa": (0, "a power of 2"),
    "chunk_simple_gla": (3, "a power of 2"),
}


@pytest.mark.parametrize("op", CHUNK_SIZES)
def test_chunk_sizes_that_fla_refuses_are_refused_in_its_words(op: str) -> None:
    call, (size, rule) = getattr(fla, op), CHUNK_SIZES[op]
    names = demanded(call)
    with pytest.raises(ValueError, match=rf"`chunk_size` must be {rule}"):
        call(**dict.fromkeys(names, torch.zeros(1, 2, 1, 4)), chunk_size=size)


def test_other_chunk_sizes_mean_nothing() -> None:
    x = torch.randn(1, 5, 1, 16)
    assert torch.equal(fla.chunk_simple_gla(x, x, x, chunk_size=32)[0], fla.chunk_simple_gla(x, x, x)[0])
