"""Torch sees one operator per variant: opcheck, compile without breaks, export, autocast, and kernels built once."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters

from sparsec.ir.error import InputError
from sparsec.runtime.compiled import Compiled, compile
from sparsec.runtime.operator import fake_outputs
from sparsec.testing.inputs.variants import NAMES, small
from sparsec.testing.whole.case import WholeCase, on


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    """Nothing compiled by torch before."""
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def drawn(name: str, tokens: int = 67, grad: bool = False) -> dict[str, Tensor]:
    """Inputs of a small variant at a length."""
    found = WholeCase(name, (tokens, tokens, None)).inputs()
    return {n: x.requires_grad_(grad and x.is_floating_point()) for n, x in found.items()}


def called(compiled: Compiled, inputs: dict[str, Tensor]) -> Tensor:
    """The one output."""
    found = compiled(None, **inputs)
    assert isinstance(found, Tensor)
    return found


def traced(compiled: Compiled) -> Any:
    """A call under Dynamo and AOT autograd, which must see all of it."""
    return torch.compile(lambda inputs: compiled(None, **inputs), fullgraph=True, backend="aot_eager")


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("name", ["msa-window", "alibi-lse", "nsa-given"])
def test_opcheck(name: str, grad: bool) -> None:
    compiled, inputs = on(name, "cpu"), drawn(name, grad=grad)
    torch.library.opcheck(compiled.operator, (*inputs.values(), None))


def test_opcheck_of_the_halves() -> None:
    compiled, inputs = on("msa-window", "cpu"), list(drawn("msa-window").values())
    training, wrt = compiled.training, tuple(compiled.names)
    forward, backward = training.operators
    torch.library.opcheck(forward, (inputs, None, ",".join(wrt)))
    dims = training.bound(inputs, None)
    halves, results = training.joint(dims, "float32", wrt), forward(inputs, None, ",".join(wrt))
    kept = [inputs[n] for n in halves.kept_inputs] + [results[n] for n in halves.kept_results]
    seeds = [torch.randn_like(results[halves.outputs[n]]) for n in halves.cotangents]
    torch.library.opcheck(backward, (kept, seeds, list(dims.values()), "float32", ",".join(wrt)))


@pytest.mark.parametrize("name", [name for name in NAMES if name != "documents"])
def test_outputs_are_foreseen(name: str) -> None:
    compiled, inputs = on(name, "interpreter"), list(drawn(name, 35).values())
    ready = [x for x in compiled.ready(inputs).outputs.values()]
    order = compiled.ready(inputs).order
    foreseen = fake_outputs(compiled, [x.to("meta") for x in inputs])
    found = [(tuple(x.shape), str(x.dtype).removeprefix("torch.")) for x in foreseen]
    assert found == [(tuple(ready[n][0]), ready[n][1]) for n in order]


def test_new_lengths_trace_at_most_twice_and_build_nothing() -> None:
    compiled = compile(small("msa-window"), "cpu")
    run, builds = traced(compiled), []
    for tokens in (67, 33, 48, 90):
        torch.testing.assert_close(run(drawn("msa-window", tokens)), called(compiled, drawn("msa-window", tokens)))
        builds.append(compiled.builds)
    assert counters["stats"]["unique_graphs"] <= 2 and counters["graph_break"] == {} and len(set(builds)) == 1


def test_lengths_marked_dynamic_trace_once() -> None:
    compiled = on("msa-window", "cpu")
    run = traced(compiled)
    for tokens in (67, 33, 48):
        inputs = drawn("msa-window", tokens)
        for name in ("q", "k", "v"):
            torch._dynamo.mark_dynamic(inputs[name], 1)
        torch.testing.assert_close(run(inputs), called(compiled, inputs))
    assert counters["stats"]["unique_graphs"] == 1


def test_gradients_trace_at_most_twice() -> None:
    compiled = on("msa-window", "cpu")
    run = traced(compiled)
    for tokens in (67, 33, 48):
        one, other = drawn("msa-window", tokens, True), drawn("msa-window", tokens, True)
        made, wanted = run(one), called(compiled, other)
        seed = torch.randn_like(made)
        made.backward(seed)
        wanted.backward(seed)
        assert all(torch.equal(one[n].grad, other[n].grad) for n in one)  # type: ignore[arg-type]
    assert counters["stats"]["unique_graphs"] <= 2 and counters["graph_break"] == {}


class Layer(torch.nn.Module):
    """A layer with attention in it."""

    def __init__(self, compiled: Compiled) -> None:
        super().__init__()
        self.compiled = compiled

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return called(self.compiled, {"q": q, "k": k, "v": v}) * 2


@pytest.mark.parametrize("strict", [False, True])
def test_export(strict: bool) -> None:
    layer, length = Layer(on("streaming", "cpu")), torch.export.Dim("T", min=2, max=4096)
    first, other = drawn("streaming"), drawn("streaming", 45)
    shapes = {name: {1: length} for name in first}
    program = torch.export.export(layer, tuple(first.values()), dynamic_shapes=shapes, strict=strict)
    assert any(node.target is layer.compiled.operator for node in program.graph.nodes)
    torch.testing.assert_close(program.module()(*other.values()), layer(*other.values()))


@pytest.mark.parametrize("how", ["eager", "traced"])
def test_autocast_casts_floats(how: str) -> None:
    compiled, inputs = on("nsa-given", "cpu"), drawn("nsa-given")
    halves = {n: x.bfloat16() if x.is_floating_point() else x for n, x in inputs.items()}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = called(compiled, inputs) if how == "eager" else traced(compiled)(inputs)
    assert found.dtype == torch.bfloat16 and torch.equal(found, called(compiled, halves))


def test_gradients_pass_through_autocast() -> None:
    compiled, inputs = on("streaming", "cpu"), drawn("streaming", grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        called(compiled, inputs).float().square().sum().backward()
    assert all(x.grad is not None and x.grad.dtype == torch.float32 for x in inputs.values())


def test_equal_variants_share_an_operator_and_others_do_not() -> None:
    one, same, other = (compile(small(n), "interpreter") for n in ("streaming", "streaming", "full"))
    assert one.operator is same.operator and one.operator is not other.operator
    assert one.operator is not compile(small("streaming"), "cpu").operator


def test_tracing_sees_bad_input_when_it_runs() -> None:
    compiled, inputs = on("streaming", "cpu"), drawn("streaming")
    with pytest.raises(InputError, match="TK is 67"):
        compiled.operator(inputs["q"], inputs["k"], inputs["v"][:, :5], None)


def test_several_outputs_are_a_tuple_when_traced() -> None:
    compiled, inputs = on("alibi-lse", "cpu"), drawn("alibi-lse")
    found, wanted = traced(compiled)(inputs), compiled(None, **inputs)
    assert isinstance(found, tuple) and all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


def test_a_copied_layer_shares_its_kernels_and_a_pickled_one_finds_them() -> None:
    layer = Layer(on("streaming", "cpu"))
    inputs = drawn("streaming").values()
    assert copy.deepcopy(layer).compiled is layer.compiled
    again = pickle.loads(pickle.dumps(layer))
    assert again.compiled is not layer.compiled and torch.equal(again(*inputs), layer(*inputs))
