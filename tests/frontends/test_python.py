"""Python front end: a decorated function declares what the text declares."""

from __future__ import annotations

from typing import Annotated

import pytest

import sparsec
from sparsec import lang
from sparsec.ir.node import Node

TEXT = """variant local(q: [B, TQ, H, D], k: [B, TK, HKV, D], v: [B, TK, HKV, DV]) {
  memory = tokens(k, v)
  near = mask(memory) {where = (j <= i) & (i - j < 64)}
  out = attend(q, memory, near) {per = joint, scale = rsqrt(D)}
  return out
}
"""


@sparsec.variant
def local(q: "B TQ H D", k: "B TK HKV D", v: "B TK HKV DV", *, window: int = 64) -> Node:  # type: ignore[valid-type]  # noqa: F722
    """A window."""
    memory = lang.tokens(k, v)
    near = lang.mask(memory, where=lambda i, j: (j <= i) & (i - j < window))
    return lang.attend(q, memory, near)


def test_a_traced_function_is_the_parsed_text() -> None:
    assert local == sparsec.parse(TEXT)
    assert local.text() == "# local window=64\n" + TEXT


def test_annotated_says_the_same() -> None:
    @sparsec.variant(name="local")
    def typed(
        q: Annotated[Node, "B TQ H D"], k: Annotated[Node, "B TK HKV D"], v: Annotated[Node, "B TK HKV DV"]
    ) -> Node:
        memory = lang.tokens(k, v)
        return lang.attend(q, memory, lang.mask(memory, where="(j <= i) & (i - j < 64)"))

    assert typed == local


def test_knobs_can_be_set_and_are_checked() -> None:
    def body(x: Annotated[Node, "B D"], *, factor: float = 2.0) -> Node:
        return lang.map(x, fn=lambda x0: x0 * factor)

    assert sparsec.variant(factor=3.0)(body) != sparsec.variant(body)
    assert dict(sparsec.variant(factor=3.0)(body).knobs) == {"factor": 3.0}
    with pytest.raises(sparsec.DeclarationError, match=r"factr: it has no such knob. Fix: did you mean `factor`"):
        sparsec.variant(factr=3.0)(body)


def test_captured_inputs_and_dtypes() -> None:
    @sparsec.variant
    def documents(
        q: Annotated[Node, "B TQ H D"], k: Annotated[Node, "B TK H D"], doc: Annotated[Node, "B TK int32"]
    ) -> Node:
        memory = lang.tokens(k, k)
        same = lang.mask(memory, where=lambda b, i, j: (j <= i) & (doc[b, i] == doc[b, j]), doc=doc)
        return lang.attend(q, memory, same)

    assert documents.inputs["doc"].dtype == "int32"
    assert "where = (j <= i) & (doc[b, i] == doc[b, j])" in documents.text()
    assert sparsec.parse(documents.text()) == documents


@pytest.mark.parametrize(
    ("where", "said"),
    [
        (lambda i, j: j <= i and i - j < 4, "use &"),
        (lambda i, j: i - j, "true or false"),
        (lambda i, key: i <= key, "`key` is not a known name. Fix: 4 parameters"),
        (lambda i, j: None, "return"),
    ],
)
def test_functions_that_cannot_be_traced(where: object, said: str) -> None:
    def body(k: Annotated[Node, "B TK H D"]) -> Node:
        memory = lang.tokens(k, k)
        return lang.attend(k, memory, lang.mask(memory, where=where))  # type: ignore[arg-type]

    with pytest.raises(sparsec.DeclarationError) as caught:
        sparsec.variant(body)
    assert said in str(caught.value)
    assert caught.value.origin is not None and caught.value.origin.file == __file__


def test_a_parameter_without_a_shape() -> None:
    def body(q: Node) -> Node:
        return lang.map(q)

    with pytest.raises(sparsec.DeclarationError, match=r"input q: no shape.*B TQ H D"):
        sparsec.variant(body)


def test_an_unused_parameter() -> None:
    def body(q: Annotated[Node, "B"], k: Annotated[Node, "B"]) -> Node:
        return lang.map(q)

    with pytest.raises(sparsec.DeclarationError, match="input k: never used"):
        sparsec.variant(body)


@pytest.mark.parametrize(("result", "said"), [(None, "returns nothing"), ((), "returns nothing"), (5, "returns 5")])
def test_a_body_returns_tensors(result: object, said: str) -> None:
    def body(q: Annotated[Node, "B"]) -> Node:
        lang.map(q)
        return result  # type: ignore[return-value]

    with pytest.raises(sparsec.DeclarationError, match=f"test_python.py:[0-9]+: variant body: {said}"):
        sparsec.variant(body)
