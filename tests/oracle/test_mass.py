"""The kept share of dense attention: one for full attention, the sum of probabilities for a window."""

from __future__ import annotations

import pytest
import torch

from sparsec.ir import build as ir
from sparsec.ir.variant import Variant, variant
from sparsec.oracle import OracleError
from sparsec.oracle.mass import kept_mass


def window(*widths: int) -> Variant:
    """Windows over the same tokens, summed."""
    q, k, v = ir.input("q", "B TQ H D"), ir.input("k", "B TK HKV D"), ir.input("v", "B TK HKV D")
    memory = ir.tokens(k, v)
    outputs = [ir.attend(q, memory, ir.mask(memory, where=f"(j <= i) & (i - j < {width})")) for width in widths]
    return variant("window", ir.merge(*outputs, fn="sum"))


def inputs(queries: int = 300) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    shapes = {"q": (2, queries, 4, 8), "k": (2, 300, 2, 8), "v": (2, 300, 2, 8)}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def test_everything_keeps_everything() -> None:
    kept = kept_mass(window(300), inputs())
    assert kept.mean == pytest.approx(1) and kept.p5 == pytest.approx(1)


def test_a_window_keeps_its_probabilities() -> None:
    given = inputs(100)
    kept = kept_mass(window(5, 20), given)
    q, k = given["q"].double(), given["k"].double().repeat_interleave(2, dim=2)
    score = torch.einsum("bthd,bshd->bths", q, k) / 8**0.5
    i, j = 200 + torch.arange(100)[:, None, None], torch.arange(300)
    p = score.masked_fill(j > i, -torch.inf).softmax(-1)
    share = p.masked_fill(i - j >= 20, 0).sum(-1)
    heads = share.mean(dim=(0, 1))
    assert kept.mean == pytest.approx(float(share.mean()))
    assert kept.worst_head[0] == int(heads.argmin())
    assert kept.worst_head[1] == pytest.approx(float(heads.min()))
    assert kept.p5 == pytest.approx(float(share.flatten().quantile(0.05)), rel=1e-2)
    assert f"{kept.mean:.1%}" in str(kept)


def test_without_tokens_there_is_no_share() -> None:
    q, k, v = ir.input("q", "B TQ H D"), ir.input("k", "M H D"), ir.input("v", "M H D")
    with pytest.raises(OracleError, match="no attend over tokens"):
        kept_mass(
            variant("slots", ir.attend(q, ir.slots(k, v))),
            {"q": torch.ones(1, 2, 1, 4), "k": torch.ones(3, 1, 4), "v": torch.ones(3, 1, 4)},
        )
