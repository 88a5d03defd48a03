"""Log-linear attention compiled: outputs and gradients as the oracle's, dense and packed."""

from __future__ import annotations

import pytest
import torch

import sparsec
from sparsec.plan.plan import PlanError
from sparsec.testing.packed_case import (
    cotangents_like,
    floats,
    gradients,
    looped,
    looped_gradients,
    packed_case,
    results,
)
from sparsec.testing.trained import wrong_on

RULES = ["additive", "delta"]
LENGTHS = (70, 0, 5, 104)


@pytest.mark.parametrize("target", ["interpreter", "tvm"])
@pytest.mark.parametrize("rule", RULES)
def test_outputs_and_gradients(rule: str, target: str) -> None:
    made = sparsec.preset("log_linear", rule=rule, levels=8, raw=target == "tvm")
    drawn = sparsec.inputs(made, B=2, T=70, H=2, HKV=2, D=16, DV=24)
    assert wrong_on(sparsec.compile(made, target=target), drawn, "float32") == []


@pytest.mark.parametrize("rule", RULES)
def test_packed_documents_begin_anew(rule: str) -> None:
    """Lengths of all documents together would need a level more than the longest has."""
    call = sparsec.compile(sparsec.preset("log_linear", rule=rule, levels=8, raw=True), target="interpreter")
    packed = packed_case(call.variant, LENGTHS, LENGTHS, H=2)
    found = results(call, **packed.packed, **packed.ends)
    cotangents, want = cotangents_like(found), looped(call, packed)
    torch.testing.assert_close(found[0], want[0], rtol=0, atol=0)
    made = gradients(call, packed, floats(call.variant), cotangents)
    for name, x in looped_gradients(call, packed, floats(call.variant), cotangents).items():
        torch.testing.assert_close(made[name], x, rtol=0, atol=0, msg=name)


def test_what_has_no_kernel_is_refused() -> None:
    made = sparsec.compile(sparsec.preset("log_linear", levels=4), target="interpreter")
    with pytest.raises(PlanError, match="2 query, 1 key and 1 value heads: levels are read by as many heads"):
        made(**sparsec.inputs(made.variant, B=1, T=8, H=2, HKV=1, D=16, DV=16))
