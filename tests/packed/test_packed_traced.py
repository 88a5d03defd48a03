"""Packed calls under torch.compile, export and opcheck: one operator, the same numbers, gradients too."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

import sparsec
from sparsec.ir.error import InputError
from sparsec.runtime.compiled import Compiled
from sparsec.testing.inputs.variants import small
from sparsec.testing.whole.packed import (
    cotangents_like,
    floats,
    gradients,
    largest_difference,
    largest_error,
    packed_case,
    results,
)


@pytest.fixture(autouse=True)
def forget() -> None:
    """Lets no test recompile what another one compiled."""
    torch._dynamo.reset()


class Layer(torch.nn.Module):
    """A packed call as a module."""

    def __init__(self, layer: Compiled) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, inputs: dict[str, Tensor], ends: dict[str, Tensor]) -> Any:
        """The outputs of the call."""
        return results(self.layer, **inputs, **ends)


@pytest.mark.parametrize("name", ["full", "hsa", "two-memories"])
def test_whole_graphs_agree_with_eager_calls(name: str) -> None:
    layer = sparsec.compile(small(name), "interpreter")
    whole = torch.compile(lambda **given: layer(**given), backend="aot_eager", fullgraph=True)
    for queries, keys in (((3, 0, 1, 20), (3, 0, 1, 20)), ((5, 17, 2), (9, 17, 30))):
        case = packed_case(layer.variant, queries, queries if layer.packed.face.shared else keys)
        wanted = results(layer, **case.packed, **case.ends)
        assert largest_difference(results(whole, **case.packed, **case.ends), wanted) == 0
        wrt, seeds = floats(layer.variant), cotangents_like(wanted)
        pulled = gradients(whole, case, wrt, seeds)
        assert largest_error(pulled, gradients(layer, case, wrt, seeds)) < 1e-6


def test_new_lengths_recompile_once() -> None:
    layer = sparsec.compile(small("full"), "interpreter")
    counter = CompileCounterWithBackend("aot_eager")
    whole = torch.compile(lambda **given: layer(**given), backend=counter, fullgraph=True)
    for lengths in ((3, 9), (4, 5, 2), (17, 2, 30, 1), (8, 8, 8, 8, 8)):
        case = packed_case(layer.variant, lengths, lengths)
        wanted = results(layer, **case.packed, **case.ends)
        assert largest_difference(results(whole, **case.packed, **case.ends), wanted) == 0
    assert counter.frame_count == 2


def test_a_given_longest_length_and_positions_reach_the_operator() -> None:
    layer = sparsec.compile(small("streaming"), "interpreter")
    whole = torch.compile(lambda **given: layer(**given), backend="aot_eager", fullgraph=True)
    case = packed_case(layer.variant, (2, 5), (9, 30))
    given = {"max_seqlen_q": 6, "max_seqlen_k": 32, "q_offset": torch.tensor([3, 8], dtype=torch.int32)}
    wanted = results(layer, **case.packed, **case.ends, **given)
    assert largest_difference(results(whole, **case.packed, **case.ends, **given), wanted) == 0


def test_the_operator_passes_opcheck() -> None:
    layer = sparsec.compile(small("full"), "interpreter")
    case = packed_case(layer.variant, (3, 0, 9), (3, 0, 9))
    inputs = [case.packed[name].clone().requires_grad_() for name in layer.names]
    given = (inputs, case.ends["cu_seqlens"], None, 9, 9, None, None)
    done = torch.library.opcheck(layer.packed_operator, given)
    assert set(done.values()) == {"SUCCESS"}


def test_export_holds_the_operator() -> None:
    layer = sparsec.compile(small("full"), "interpreter")
    case = packed_case(layer.variant, (3, 0, 9), (3, 0, 9))
    made = torch.export.export(Layer(layer), (case.packed, case.ends))
    assert any("packed" in str(node.target) for node in made.graph.nodes)
    (wanted,) = results(layer, **case.packed, **case.ends)
    assert torch.equal(made.module()(case.packed, case.ends)[0], wanted)


def test_wrong_ends_are_refused_by_the_operator_too() -> None:
    layer = sparsec.compile(small("full"), "interpreter")
    case = packed_case(layer.variant, (3, 9), (3, 9))
    whole = torch.compile(lambda **given: layer(**given), backend="aot_eager", fullgraph=True)
    with pytest.raises(InputError, match="cu_seqlens: it ends at 4"):
        whole(**case.packed, cu_seqlens=torch.tensor([0, 3, 4], dtype=torch.int32))


def test_an_output_returned_twice_is_copied() -> None:
    """An operator's outputs share no memory."""
    text = small("full").text()
    assert "return out\n" in text
    layer = sparsec.compile(sparsec.parse(text.replace("return out\n", "return out, out\n")), "interpreter")
    case = packed_case(layer.variant, (2, 3), (2, 3))
    first, second = layer.packed_operator(list(case.packed.values()), case.ends["cu_seqlens"], None, 3, 3, None, None)
    assert first.equal(second) and first.data_ptr() != second.data_ptr()
