"""What people write first: what is meant is taken, and what is not says what to write."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

import sparsec
from sparsec import lang, nn
from sparsec.autotune.report import KernelReport
from sparsec.ir.error import DeclarationError, InputError
from sparsec.ir.node import Node
from sparsec.ir.variant import Variant
from sparsec.tile.schedule import Schedule

SHAPES = {"q": "B T H D", "k": "B T HKV D", "v": "B T HKV DV", "g": "B T H"}


def declared(body: Callable[[Node, Node, Node, Node], Node]) -> Variant:
    inputs = {name: lang.input(name, shape) for name, shape in SHAPES.items()}
    return sparsec.ir.variant.variant("layer", [body(*inputs.values())], list(inputs.values()))


def both(q: Node, k: Node, v: Node, gates: Node | list[Node]) -> Node:
    memory = lang.tokens(k, v)
    near = lang.attend(q, memory, lang.mask(memory, where=lambda i, j: j <= i))
    return lang.merge(near, lang.attend(q, memory), fn="convex", gates=gates)


def test_functions_of_torch_that_do_not_say_what_they_take() -> None:
    """torch.tanh and the like have no signature."""
    one = declared(lambda q, k, v, g: both(q, k, v, [lang.map(g, fn=torch.tanh)]))
    assert one == declared(lambda q, k, v, g: both(q, k, v, [lang.map(g, fn=lang.tanh)]))


def test_one_gate_needs_no_list() -> None:
    assert declared(lambda q, k, v, g: both(q, k, v, g)) == declared(lambda q, k, v, g: both(q, k, v, [g]))


MISTAKES: dict[str, tuple[Callable[[Node, Node, Node, Node], Node], str]] = {
    "keys where memory is read": (lambda q, k, v, g: lang.attend(q, k, v), r"Fix: tokens\(k, v\) makes one"),
    "a torch tensor in a mask": (
        lambda q, k, v, g: lang.attend(
            q, m := lang.tokens(k, v), lang.mask(m, where=lambda i, j: torch.ones(5)[i] > j)
        ),
        "make it an input, and give it to the op by keyword",
    ),
    "a gate where queries are scored": (lambda q, k, v, g: lang.score(g, k), "4 dims.*1 for a dim that it lacks"),
    "a dtype that no input has": (lambda q, k, v, g: lang.input("x", "B T H bfloat16"), "no input is declared with"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_says_what_to_write(name: str) -> None:
    body, said = MISTAKES[name]
    with pytest.raises(DeclarationError, match=said):
        declared(body)


def test_a_layer_is_tuned_on_inputs_by_name() -> None:
    layer = sparsec.compile(sparsec.preset("streaming"), target="cpu")
    with pytest.raises(InputError, match=r'a Tensor: a layer is tuned on its inputs by name. Fix: {"q": q, "k": k'):
        layer.tune(torch.zeros(1))  # type: ignore[arg-type]


def test_a_search_that_was_interrupted_at_once_does_not_say_that_nothing_works() -> None:
    report = KernelReport("attend", None, Schedule(), None, None, (), "interrupted")
    assert str(report).startswith("attend: interrupted before it had a result")


def test_summaries_lie_one_after_another_unless_a_stride_is_said() -> None:
    def summed(stride: int | None = None) -> Variant:
        def body(q: Node, k: Node, v: Node, g: Node) -> Node:
            summaries = lang.summary(lang.tokens(k, v), size=16, stride=stride, fields="kv")
            return lang.merge(lang.attend(q, summaries), lang.attend(q, lang.tokens(k, v)), fn="convex", gates=g)

        return declared(body)

    assert summed() == summed(stride=16) != summed(stride=8)
    text = summed(stride=16).text()
    assert sparsec.parse(text.replace(", stride = 16", "").replace("stride = 16, ", "")) == sparsec.parse(text)


def test_a_layer_says_what_it_takes() -> None:
    layer = sparsec.compile(sparsec.preset("streaming", window=8), target="interpreter")
    said = "<sparsec streaming on interpreter: q [B,TQ,H,D], k [B,TK,HKV,D], v [B,TK,HKV,DV]>"
    assert repr(layer) == said
    module = repr(nn.GatedDeltaNet(24, 2, head_dim=16))
    assert "gdn, dim=24, H=2 HKV=2 D=16 DV=16" in module and "ShortConvolution(32, width=4)" in module


def test_a_router_that_can_learn_nothing_is_noted() -> None:
    """The only chosen part has all of what is renormalised."""
    text = sparsec.preset("sse", k=1, raw=True).text()
    sizes = {"B": 1, "T": 9, "H": 2, "HKV": 2, "D": 16, "DV": 16, "DX": 8, "q_offset": 0}
    plain = sparsec.parse(text)
    one = sparsec.parse(text.replace("fn = softmax, renormalise = false", "fn = softmax, renormalise = true"))
    assert one != plain
    notes = ["\n".join(sparsec.compile(x, target="interpreter").plan(sizes, "float32").notes) for x in (plain, one)]
    assert "learns nothing" not in notes[0] and "the router learns nothing by it; renormalise = false" in notes[1]
