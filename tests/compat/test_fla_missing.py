"""A tensor that an op by fla's name needs, and that is not given, is named."""

from __future__ import annotations

import inspect

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


@pytest.mark.parametrize("op", GATED)
def test_a_tensor_that_is_needed_and_is_none_is_named(op: str) -> None:
    call = getattr(fla, op)
    x = torch.zeros(1, 2, 1, 4)
    names = [
        n
        for n, p in inspect.signature(call).parameters.items()
        if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD
    ]
    given = {n: 1 if n == "num_householder" else None if n == GATED[op] else x for n in names}
    with pytest.raises(InputError, match=rf"{op}: {GATED[op]}: None.*give a tensor for {GATED[op]}"):
        call(**given)
    with pytest.raises(InputError, match=rf"{op}: {GATED[op]}: None"):
        call(*given.values())
