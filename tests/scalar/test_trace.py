"""Tracing Python functions: parameters, captured tensors, torch's spelling, and errors that say what to write."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from sparsec.scalar.closure import captured_tensors
from sparsec.scalar.evaluate import evaluate
from sparsec.scalar.expr import Expr, Kind, element, var
from sparsec.scalar.functions import minimum, where
from sparsec.scalar.trace import TraceError, trace

INDICES: dict[str, Kind] = {"b": "int", "h": "int", "i": "int", "j": "int"}
MODULE_TABLE = torch.arange(4)
i, j = var("i"), var("j")


def test_parameters_are_found_by_name_or_taken_in_order() -> None:
    wanted = (j <= i) & (i - j < 512)
    assert trace(lambda j, i: (j <= i) & (i - j < 512), INDICES) is wanted
    assert trace(lambda b, h, q_idx, kv_idx: (kv_idx <= q_idx) & (q_idx - kv_idx < 512), INDICES) is wanted
    assert trace(lambda i, j, w=512: (j <= i) & (i - j < w), INDICES) is wanted
    assert trace(lambda: True, INDICES, kind="bool").value is True


def test_equality_is_traced() -> None:
    assert str(trace(lambda i, j: (i // 64 == j // 64) & (j != 3), INDICES)) == "(i // 64 == j // 64) & (j != 3)"


def test_closure_and_module_tensors_become_elements() -> None:
    doc = torch.tensor([0, 0, 1, 1])

    def same(i: Any, j: Any) -> Any:
        return doc[i] == doc[j]

    def mask(b: Any, h: Any, i: Any, j: Any) -> Any:
        return same(i, j) & (j <= i) & (MODULE_TABLE[h] >= 0)

    found = captured_tensors(mask)
    assert set(found) == {"doc", "MODULE_TABLE"} and found["doc"] is doc
    expr = trace(mask, INDICES, found)
    assert str(expr) == "(doc[i] == doc[j]) & (j <= i) & (0 <= MODULE_TABLE[h])"
    at = torch.arange(4)
    shown = evaluate(expr, {"i": at[:, None], "j": at, "h": 0, **found})
    assert torch.equal(shown, torch.block_diag(torch.ones(2, 2), torch.ones(2, 2)).tril().bool())
    assert same(0, 1)  # the function itself is untouched


def test_lists_of_functions_are_followed_and_clashing_names_told_apart() -> None:
    def reads(t: torch.Tensor) -> Callable[[Any, Any], Any]:
        return lambda i, j: t[i] == t[j]

    def both(*masks: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
        return lambda i, j: masks[0](i, j) & masks[1](i, j)

    mask = both(reads(torch.zeros(3)), reads(torch.ones(3, dtype=torch.int32)))
    found = captured_tensors(mask)
    assert list(found) == ["t", "t_1"]
    assert str(trace(mask, INDICES, found)) == "(t[i] == t[j]) & (t_1[i] == t_1[j])"


def test_a_kind_stands_for_a_tensor_of_that_name() -> None:
    slopes = torch.ones(8)
    traced = trace(
        lambda score, h, i, j: score + slopes[h] * (j - i), {**INDICES, "score": "float"}, {"slopes": "float"}
    )
    assert traced is var("score", "float") + element("slopes", var("h")) * (j - i)


def test_torch_functions_are_understood() -> None:
    score = var("score", "float")

    def bent(score: Any, b: Any, h: Any, i: Any, j: Any) -> Any:
        return torch.where(torch.abs(i - j) < 4, 20.0 * torch.tanh(score / 20.0), -torch.inf) + torch.minimum(i, j)

    traced = trace(bent, {"score": "float", **INDICES})
    from sparsec.scalar.functions import tanh

    assert traced is where(abs(i - j) < 4, 20.0 * tanh(score / 20.0), -float("inf")) + minimum(i, j)


def and_not_ampersand(i: Expr, j: Expr) -> object:
    """A common slip."""
    return (j <= i) and (i - j < 4)


def equality_in_an_if(i: Expr, j: Expr) -> object:
    """Identity must not decide here."""
    return 1 if i == j else 0


TABLE = torch.ones(2, 2)


@pytest.mark.parametrize(
    ("fn", "kind", "message"),
    [
        (and_not_ampersand, None, "use &"),
        (equality_in_an_if, None, "no truth value"),
        (lambda i, j: 0 <= j <= i, None, "no truth value"),
        (lambda i, j: None, None, "returns None"),
        (lambda i, j: i - j, "bool", "write `i - j != 0`"),
        (lambda i, j: i < j, "float", "use where"),
        (lambda i, k: i, None, "takes 2 parameters, not 4, and `k` is not a known"),
        (lambda i: i.tanh(), None, "no method `tanh`"),
        (lambda *x: x, None, "plain parameters"),
        (lambda i: TABLE, None, "whole tensor `TABLE`"),
        (lambda i: TABLE[i], None, "2 dimensions and 1 indices"),
        (lambda i: TABLE[i, :], None, "not a slice"),
        (lambda i: torch.fft.fft(i), None, "no scalar function"),
    ],
)
def test_errors_say_what_to_write(fn: Callable[..., object], kind: Kind | None, message: str) -> None:
    with pytest.raises(TraceError, match=message.replace("*", "\\*")):
        trace(fn, INDICES, captured_tensors(fn), kind)
    assert i != j  # and tracing is over: identity again
