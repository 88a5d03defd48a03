"""Scores with ``rounding = storage`` read summaries as attention does: the oracle, the plan and the kernels agree."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sparsec.frontends.preset import preset
from sparsec.frontends.text import parse
from sparsec.ir.variant import Variant
from sparsec.oracle import oracle
from sparsec.oracle.values import Chosen
from sparsec.passes.stream import stream
from sparsec.plan.specs import Selector, Summarise
from sparsec.runtime.compiled import compile
from sparsec.runtime.inputs import inputs
from sparsec.testing.whole.chain import links
from sparsec.testing.whole.trained import wrong_on

SIZES: dict[str, Any] = {"B": 1, "TQ": 131, "TK": 131, "H": 4, "HKV": 2, "D": 32, "DV": 32}


def nsa(rounding: str) -> Variant:
    """Blocks, summaries and windows of 16."""
    return preset("nsa", rounding=rounding, block=16, k=4, size=16, stride=16, window=16)


def lists(variant: Variant, given: dict[str, torch.Tensor]) -> torch.Tensor:
    """What the oracle chooses."""
    _, every = oracle(variant, given, form="vector", return_all=True)
    (chosen,) = [x for x in every.values() if isinstance(x, Chosen)]
    return chosen.ids


def test_the_text_says_it() -> None:
    variant = nsa("storage")
    assert "rounding = storage" in variant.text() and "rounding" not in nsa("none").text().splitlines()[3]
    assert parse(variant.text()).outputs == variant.outputs


def test_the_oracle_rounds_to_the_dtype_that_inputs_come_in() -> None:
    given = inputs(nsa("storage"), dtype="bfloat16", **SIZES)
    exact = {n: x.double() for n, x in given.items()}
    assert torch.equal(lists(nsa("storage"), exact), lists(nsa("none"), given))
    moved = [not torch.equal(lists(nsa("storage"), x), lists(nsa("none"), x)) for x in _draws()]
    assert any(moved)


def _draws() -> list[dict[str, torch.Tensor]]:
    return [inputs(nsa("none"), dtype="bfloat16", seed=n, **{**SIZES, "TQ": 515, "TK": 515}) for n in range(3)]


@pytest.mark.parametrize("target,dtype", [("interpreter", "bfloat16"), ("interpreter", "float16"), ("cpu", "float32")])
def test_every_link_holds(target: str, dtype: str) -> None:
    given = inputs(nsa("storage"), dtype=dtype, **SIZES)
    compiled = compile(nsa("storage"), target)
    assert [link.sentence for link in links(compiled, given) if not link.ok] == []
    assert wrong_on(compiled, given, dtype) == []


def test_one_kernel_summarises_for_both() -> None:
    def summed(rounding: str) -> list[str]:
        compiled = compile(nsa(rounding), "interpreter")
        kernels = compiled.plan(SIZES, "bfloat16").kernels
        (selector,) = [k.spec for k in kernels if isinstance(k.spec, Selector)]
        assert (selector.key_dtype is None) == (rounding == "storage")
        return [k.spec.out for k in kernels if isinstance(k.spec, Summarise)]

    assert len(summed("none")) == len(summed("storage")) + 1


def test_a_cache_keeps_one_row_for_both() -> None:
    exact, stored = (stream(nsa(rounding)).spec.running[0] for rounding in ("none", "storage"))
    assert stored.row is exact.row and stored.exact.value == 0
