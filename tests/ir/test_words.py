"""The words of declarations: each op has its constructor, tensors are captured, and errors say what to write."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import sparsec
from sparsec import lang
from sparsec.ir.dims import bind
from sparsec.ir.error import InputError
from sparsec.ir.lengths import position
from sparsec.ir.op import Op

REFERENCE = Path(__file__).parents[2] / "docs" / "reference.md"


def made() -> tuple[lang.Node, lang.Node, lang.Node, lang.Node]:
    """Queries, a memory, slopes and a decay."""
    q, k, v = (lang.input(name, shape) for name, shape in (("q", "B T H D"), ("k", "B T H D"), ("v", "B T H D")))
    return q, lang.tokens(k, v), lang.input("slope", "H"), lang.input("f", "B T H float32")


def read(**how: object) -> lang.Node:
    """An attention."""
    q, memory, slope, _ = made()
    given = {name: slope if value is ... else value for name, value in how.items()}
    return lang.attend(q, memory, **given)  # type: ignore[arg-type]


def test_every_op_of_the_reference_has_its_constructor() -> None:
    """The table of ops names nothing that a declaration cannot say."""
    table = REFERENCE.read_text().split("| op | sources")[1].split("\n\n")[0]
    named = {word for row in re.findall(r"^\| ([a-z, 0-9_]+) \|", table, re.M) for word in row.split(", ")}
    assert {"prefix", "members", "vjp"} <= named
    assert {*named, *(op.value for op in Op)} <= set(lang.__all__)


def test_a_computed_tensor_is_captured_by_a_traced_function() -> None:
    """A running sum in a bias: a lambda says what the text says; the keyword is the name."""
    q, memory, _, f = made()
    fades = lang.prefix(f)
    traced = lang.attend(q, memory, bias=lambda score, b, h, i, j: score + fades[b, i, h] - fades[b, j, h], cum=fades)
    assert traced is lang.attend(q, memory, bias="score + cum[b, i, h] - cum[b, j, h]", cum=fades)


def write_without_decay() -> object:
    """A kind of decay, and no decay."""
    q, k = lang.input("q", "B T H D"), lang.input("k", "B T H D")
    return lang.recall(q, lang.write(lang.state(heads="H", cols="D"), k, q, decay_kind="scalar"))


def top(eligible: str) -> object:
    """A list of chunks."""
    q, _, *_ = made()
    memory = lang.tokens(lang.input("k", "B T H D"), lang.input("v", "B T H D"), chunk=16)
    return lang.topk(
        lang.score(q, lang.summary(memory, size=16, stride=16)), k=2, size=16, scope="head", eligible=eligible
    )


def masked(where: Callable[..., object]) -> object:
    """A mask."""
    return lang.mask(made()[1], where=where)


def several() -> object:
    """Selections as a list."""
    q, memory, _, _ = made()
    return lang.attend(q, memory, [lang.mask(memory, where="causal"), lang.mask(memory, where="j < 4")])  # type: ignore[arg-type]


WORDS: dict[str, tuple[Callable[[], object], str]] = {
    "decay_kind alone": (write_without_decay, "scalar without decay.* Fix: decay="),
    "capture as a parameter": (
        lambda: read(bias=lambda score, h, slope: score + slope[h], slope=...),
        r"Fix: `slope` is no parameter: close over it, .*slope\[h\].* keep slope=slope",
    ),
    "a list of selections": (several, "Fix: give its members one after another, without the list"),
    "unknown eligible": (lambda: top("past"), "choose one of complete_past, complete, started"),
    "and": (lambda: masked(lambda i, j: j <= i and i - j < 8), "Fix: .a. & .b."),
    "chained": (lambda: masked(lambda i, j: 0 <= i - j < 8), "Fix: .* & .x < 8."),
    "sink in a word": (lambda: read(sink="given"), r"Fix: sink=<tensor \[H\]>"),
    "where of an attend": (lambda: read(where="j <= i"), r"Fix: lang.mask\(memory, where="),
}


@pytest.mark.parametrize("name", WORDS)
def test_a_refusal_says_what_to_write(name: str) -> None:
    """The fix is the one that helps."""
    declare, words = WORDS[name]
    with pytest.raises(sparsec.DeclarationError, match=words):
        declare()


def test_arithmetic_on_nodes_names_what_computes() -> None:
    """Nodes are no tensors."""
    q, *_ = made()
    with pytest.raises(TypeError, match=r"sigmoid takes tensors, not nodes: lang\.map"):
        torch.sigmoid(q)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"lang\.merge"):
        q + q


def test_sizes_name_the_node_and_the_order_of_dims() -> None:
    """A node is no input; a shape with heads before tokens is shown the declared order."""
    layer = sparsec.preset("full")
    with pytest.raises(InputError, match=r"in the order \[B, TK, HKV, DV\]"):
        bind(layer, {"q": (1, 2, 4, 8), "k": (1, 2, 4, 8), "v": (1, 3, 4, 8)})
    with pytest.raises(InputError, match=r"^node attend"):
        bind(layer, {"q": (1, 4, 3, 8), "k": (1, 4, 2, 8), "v": (1, 4, 2, 8)})


def test_a_tensor_without_a_name_is_no_position() -> None:
    """What ``layer(q)`` gives as ``q_offset``."""
    with pytest.raises(InputError, match=r"shape \(1, 4, 2, 8\): .* Fix: give inputs by name"):
        position(torch.zeros(1, 4, 2, 8))
