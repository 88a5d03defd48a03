"""Packed documents: states begin anew with each, and equal the loop over the documents, gradients included."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import sparsec
from sparsec.frontends.recurrent import keys, queries, values
from sparsec.ir import build as lang
from sparsec.ir.build_state import recall, state, write
from sparsec.ir.variant import variant
from sparsec.plan.plan import PlanError
from sparsec.testing.whole.packed import PackedCase, cotangents_like, floats, gradients, packed_case, results

LENGTHS = (3, 0, 1, 20)
CASES: dict[str, tuple[str, dict[str, object]]] = {
    "mapped": ("gdn", {}),
    "from given states": ("kda", {"raw": True, "initial": True}),
    "first and last states": ("rwkv7", {"raw": True, "initial": True, "final": True}),
    "several steps": ("delta_product", {"raw": True, "initial": True, "final": True}),
    "chosen parts": ("sse", {"rule": "gdn", "k": 2}),
    "levels": ("rsa", {"raw": True}),
    "levels of two parts": ("rsa", {"raw": True, "levels": 2, "k": 2}),
    "slots of levels": ("rsa", {"readout": "slot_softmax", "routing": "tree", "left": "pre"}),
    "gated slots": ("gsa", {}),
}


def together(parts: list[Tensor], alone: Tensor) -> Tensor:
    """Results of documents as a packed call gives them: rows one after the other, last states one per document."""
    return torch.cat(parts, 0) if alone.ndim == 5 else torch.cat(parts, 1).squeeze(0)


def apart(call: sparsec.Compiled, case: PackedCase, cotangents: list[Tensor]) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Outputs and gradients of every document alone."""
    outputs, grads, start = list[tuple[Tensor, ...]](), list[dict[str, Tensor]](), 0
    for number, document in enumerate(case.documents):
        leaves = {name: x.clone().requires_grad_() for name, x in document.items()}
        found = results(call, **leaves)
        rows = found[0].shape[1]
        spans = [(number, number + 1) if o.ndim == 5 else (start, start + rows) for o in found]
        mine = [c[a:b].reshape(o.shape) for o, c, (a, b) in zip(found, cotangents, spans, strict=True)]
        torch.autograd.backward(found, mine)
        start, outputs, grads = (
            start + rows,
            [*outputs, found],
            [*grads, {n: x.grad for n, x in leaves.items() if x.grad is not None}],
        )
    made = [together(list(parts), parts[0]) for parts in zip(*outputs, strict=True)]
    shared = {n for n, at in case.layouts.items() if at is None}
    own = {n: together([g[n] for g in grads], grads[0][n]) for n in grads[0] if n not in shared}
    return made, own | {n: torch.stack([g[n] for g in grads]).sum(0) for n in shared}


@pytest.mark.parametrize("case", CASES)
def test_packing_is_looping(case: str) -> None:
    name, knobs = CASES[case]
    call = sparsec.compile(sparsec.preset(name, **knobs), target="interpreter")
    equal_to_the_loop(call, packed_case(call.variant, LENGTHS, LENGTHS, DX=24))


@pytest.mark.parametrize("name", ["gdn", "kda", "delta_product", "sse_gdn"])
def test_unit_vectors_of_documents(name: str) -> None:
    """In half precision scans make unit vectors as they read, in documents as alone."""
    call = sparsec.compile(sparsec.preset(name), target="interpreter")
    given = {n for n, spec in call.variant.inputs.items() if spec.dtype == "float"}
    drawn = packed_case(call.variant, LENGTHS, LENGTHS, DX=24)
    equal_to_the_loop(call, drawn.moved(lambda n, x: x.bfloat16() if n in given else x))


def equal_to_the_loop(call: sparsec.Compiled, packed: PackedCase) -> None:
    """Outputs and gradients are those of every document alone, bit for bit; of what all share nearly."""
    outputs = results(call, **packed.packed, **packed.ends)
    cotangents = cotangents_like(outputs)
    wanted, wanted_grads = apart(call, packed, cotangents)
    for mine, right in zip(outputs, wanted, strict=True):
        torch.testing.assert_close(mine, right, rtol=0, atol=0)
    for name, grad in gradients(call, packed, floats(call.variant), cotangents).items():
        close = 1e-5 if wanted_grads[name].dtype == torch.float32 else 2e-2  # the sum is rounded, or its terms
        near = {"rtol": close, "atol": close} if packed.layouts[name] is None else {"rtol": 0, "atol": 0}
        torch.testing.assert_close(grad, wanted_grads[name], msg=name, **near)


def test_a_single_document_keeps_its_last_state_apart() -> None:
    call = sparsec.compile(sparsec.preset("gdn", raw=True, final=True), target="interpreter")
    packed = packed_case(call.variant, (5,), (5,))
    assert [x.ndim for x in results(call, **packed.packed, **packed.ends)] == [3, 5]


def test_what_all_documents_share_beside_what_each_has_is_refused() -> None:
    """A map of both would have its sums over rows of all documents, and its rows per document."""
    scaled = lang.map(values(), lang.input("y", "B 1 HKV DV"), lang.input("c", "HKV DV"), fn="x0*x1*x2")
    call = sparsec.compile(variant("scaled", recall(queries(), write(state(), keys(), scaled))), target="interpreter")
    case = packed_case(call.variant, (3, 0, 1, 20), (3, 0, 1, 20))
    outs = results(call, **case.packed, **case.ends)
    with pytest.raises(PlanError, match="that all share where a map also reads one"):
        gradients(call, case, floats(call.variant), cotangents_like(outs))
