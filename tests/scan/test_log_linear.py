"""Log-linear attention compiled: outputs and gradients as the oracle's, dense and packed."""

from __future__ import annotations

import pytest
import torch

import sparsec
from sparsec.oracle import oracle
from sparsec.plan.plan import PlanError
from sparsec.testing.packed_case import packed_case, results

RULES = ["additive", "delta"]
LENGTHS = (70, 0, 5, 104)


@pytest.mark.parametrize("raw", [True, False])
@pytest.mark.parametrize("rule", RULES)
def test_outputs(rule: str, raw: bool) -> None:
    made = sparsec.preset("log_linear", rule=rule, levels=9, raw=raw)
    x = sparsec.inputs(made, B=2, T=150, H=2, HKV=2, D=16, DV=24)
    found = sparsec.compile(made, target="interpreter")(**x)
    want = oracle(made, x, form="vector")
    assert isinstance(found, torch.Tensor) and isinstance(want, torch.Tensor)
    assert float((found - want).norm() / want.norm()) < 1e-6


@pytest.mark.parametrize("rule", RULES)
def test_packed_documents_begin_anew(rule: str) -> None:
    """Lengths of all documents together would need a level more than the longest has."""
    call = sparsec.compile(sparsec.preset("log_linear", rule=rule, levels=8, raw=True), target="interpreter")
    packed = packed_case(call.variant, LENGTHS, LENGTHS, H=2)
    found = call(**packed.packed, **packed.ends)
    want = torch.cat([results(call, **document)[0].squeeze(0) for document in packed.documents])
    torch.testing.assert_close(found, want, rtol=0, atol=0)


def test_what_has_no_kernel_is_refused() -> None:
    made = sparsec.compile(sparsec.preset("log_linear", levels=4), target="interpreter")
    with pytest.raises(PlanError, match="2 query, 1 key and 1 value heads: levels are read by as many heads"):
        made(**sparsec.inputs(made.variant, B=1, T=8, H=2, HKV=1, D=16, DV=16))
