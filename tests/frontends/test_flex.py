"""FlexAttention's functions: the same mask and the same scores, with captured tensors as inputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import sparsec
from sparsec.ir.op import Op
from sparsec.scalar.evaluate import evaluate

DOCUMENTS = torch.tensor([[0, 0, 1, 1, 1, 2]])
SLOPES = torch.tensor([0.5, 0.25])


def causal(b: Any, h: Any, q: Any, kv: Any) -> Any:
    """The mask of decoders."""
    return q >= kv


def same_document(b: Any, h: Any, q: Any, kv: Any) -> Any:
    """Packed documents."""
    return causal(b, h, q, kv) & (DOCUMENTS[b, q] == DOCUMENTS[b, kv])


def alibi(score: Any, b: Any, h: Any, q: Any, kv: Any) -> Any:
    """Linear biases."""
    return score - SLOPES[h] * (q - kv)


def softcap(score: Any, b: Any, h: Any, q: Any, kv: Any) -> Any:
    """As in Gemma 2."""
    return 20.0 * torch.tanh(score / 20.0)


def grid() -> dict[str, torch.Tensor]:
    """All b, h, i, j of a small case."""
    axes = torch.meshgrid(torch.arange(1), torch.arange(2), torch.arange(6), torch.arange(6), indexing="ij")
    return dict(zip("bhij", axes, strict=True))


@pytest.mark.parametrize("mask_mod", [causal, same_document])
def test_masks_mean_the_same(mask_mod: Callable[..., Any]) -> None:
    made = sparsec.from_flex(mask_mod=mask_mod)
    where = next(node for node in made.nodes if node.op is Op.MASK).expr("where")
    assert where is not None
    at = grid()
    ours = evaluate(where, {**at, "DOCUMENTS": DOCUMENTS})
    assert torch.equal(ours, mask_mod(at["b"], at["h"], at["i"], at["j"]))


@pytest.mark.parametrize("score_mod", [alibi, softcap])
def test_scores_mean_the_same(score_mod: Callable[..., Any]) -> None:
    bias = sparsec.from_flex(score_mod).outputs[0].expr("bias")
    assert bias is not None
    at, score = grid(), torch.randn(1, 2, 6, 6, generator=torch.Generator().manual_seed(0))
    ours = evaluate(bias, {**at, "score": score, "SLOPES": SLOPES})
    assert torch.allclose(ours, score_mod(score, at["b"], at["h"], at["i"], at["j"]))


def test_captured_tensors_become_inputs() -> None:
    made = sparsec.from_flex(alibi, same_document)
    assert {name: str(spec) for name, spec in made.inputs.items() if name not in "qkv"} == {
        "DOCUMENTS": "[1, 6] int32",
        "SLOPES": "[2] float32",
    }
    assert sparsec.parse(made.text()) == made


def test_captures_with_open_lengths() -> None:
    made = sparsec.from_flex(mask_mod=same_document, captures={"DOCUMENTS": "B TK int32"})
    assert str(made.inputs["DOCUMENTS"]) == "[B, TK] int32"


def test_neither_function_is_full_attention() -> None:
    assert sparsec.from_flex() == sparsec.preset("full", causal=False)
    assert sparsec.from_flex(mask_mod=causal) == sparsec.preset("full")


def test_what_cannot_be_traced() -> None:
    def decides(b: Any, h: Any, q: Any, kv: Any) -> Any:
        return q >= kv and h > 0

    with pytest.raises(sparsec.DeclarationError, match="flex decides: it cannot be traced"):
        sparsec.from_flex(mask_mod=decides)


def test_a_bool_tensor_is_refused_with_a_fix() -> None:
    seen = torch.ones(6, dtype=torch.bool)

    with pytest.raises(sparsec.DeclarationError, match=r"capture seen: bool.*int32"):
        sparsec.from_flex(mask_mod=lambda b, h, q, kv: seen[kv])


@pytest.mark.parametrize(
    ("score_mod", "said"),
    [
        (lambda s, b, h, q, kv: s.tanh(), r"no method `tanh`\. Fix: lang\.tanh\(x\) or torch\.tanh\(x\)"),
        (lambda s, b, h, q, kv: s.frob(), r"no method `frob`\. Fix: scalar arithmetic"),
        (lambda s, b, h, q: s, r"takes 4 parameters, not 5.*Fix: 5 parameters of any names for score, b, h, i, j"),
        (lambda s, b, h, q, kv, more: s, "takes 6 parameters, not 5"),
    ],
)
def test_what_flex_functions_may_not_do(score_mod: Callable[..., Any], said: str) -> None:
    with pytest.raises(sparsec.DeclarationError, match=said):
        sparsec.from_flex(score_mod)


def test_a_mistake_of_the_functions_own_stays_what_it_is() -> None:
    with pytest.raises(AttributeError, match="nothing_like_it"):
        sparsec.from_flex(lambda s, b, h, q, kv: s * torch.nothing_like_it)  # type: ignore[attr-defined]


@pytest.mark.parametrize("score_mod", [lambda s, b, h, q: s, lambda s, b, h, q, kv: s + q % 0])
def test_what_is_refused_is_refused_where_it_was_asked_for(score_mod: Callable[..., Any]) -> None:
    with pytest.raises(sparsec.DeclarationError) as caught:
        sparsec.from_flex(score_mod)
    assert caught.value.origin is not None and caught.value.origin.file == __file__
