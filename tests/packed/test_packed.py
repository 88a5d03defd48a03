"""Packing equals looping over the documents, for every variant: outputs and gradients, empty documents included."""

from __future__ import annotations

from math import prod

import pytest
import torch

import sparsec
from sparsec.oracle.packed import packed_oracle
from sparsec.runtime.compiled import Compiled
from sparsec.runtime.packed.documents import Given
from sparsec.runtime.ready import Ready
from sparsec.testing.inputs.variants import EVERY, NAMES, small
from sparsec.testing.whole.packed import (
    PackedCase,
    floats,
    largest_difference,
    looped,
    off_the_loop,
    packed_case,
    results,
)

LENGTHS = (3, 0, 1, 20)
"""Empty and one-token documents, one that ends within a chunk, one of several chunks."""
QUERIES, KEYS = (5, 0, 1, 18, 3), (9, 4, 1, 33, 0)
"""Fewer queries than keys, keys without queries, queries without keys."""

UNLIKE = ("full", "msa-strided-gated", "hsa", "nsa", "moba", "infllm2-free", "two-memories", "open-chunks")
COMPILED = ("full-softcap-sink", "hsa-mean")


def _case(layer: Compiled, queries: tuple[int, ...], keys: tuple[int, ...]) -> PackedCase:
    return packed_case(layer.variant, queries, queries if layer.packed.face.shared else keys)


def _agrees(layer: Compiled, case: PackedCase, differentiable: bool) -> None:
    outputs, gradients = off_the_loop(layer, case, floats(layer.variant) if differentiable else [])
    assert outputs == 0 and gradients < 1e-6


@pytest.mark.parametrize("name", EVERY)
def test_packing_is_looping_over_the_documents(name: str) -> None:
    layer = sparsec.compile(small(name), "interpreter")
    _agrees(layer, _case(layer, LENGTHS, LENGTHS), name in NAMES and name not in ("head-weights",))


@pytest.mark.slow
@pytest.mark.parametrize("name", UNLIKE)
def test_queries_and_keys_may_have_lengths_of_their_own(name: str) -> None:
    layer = sparsec.compile(small(name), "interpreter")
    _agrees(layer, _case(layer, QUERIES, KEYS), True)


@pytest.mark.parametrize("name", ["msa-window", "full-softcap-sink", "hsa", "two-memories"])
@pytest.mark.parametrize(("queries", "keys"), [((0, 0), (0, 0)), ((2, 3), (0, 0)), ((0, 0), (2, 3)), ((1,), (1,))])
def test_all_documents_may_be_empty(name: str, queries: tuple[int, ...], keys: tuple[int, ...]) -> None:
    layer = sparsec.compile(small(name), "interpreter")
    _agrees(layer, _case(layer, queries, keys), True)


def test_there_may_be_no_documents() -> None:
    layer = sparsec.compile(small("streaming"), "interpreter")
    nothing = {name: torch.zeros(0, 4 if name == "q" else 2, 16) for name in layer.names}
    (output,) = results(layer, **nothing, cu_seqlens=torch.zeros(1, dtype=torch.int32))
    assert output.shape == (0, 4, 16)


@pytest.mark.slow
@pytest.mark.parametrize("name", COMPILED)
def test_compiled_kernels_pack_too(name: str) -> None:
    layer = sparsec.compile(small(name), "cpu")
    _agrees(layer, _case(layer, (3, 0, 1, 67, 33), (3, 0, 1, 67, 33)), True)


@pytest.mark.parametrize("name", ["nsa", "hsa", "two-memories"])
def test_packed_calls_agree_with_the_oracle_of_each_document(name: str) -> None:
    layer = sparsec.compile(small(name), "interpreter")
    case = _case(layer, QUERIES, KEYS)
    exact = {n: x.double() if x.is_floating_point() else x for n, x in case.packed.items()}
    ends = {n: x.tolist() for n, x in case.ends.items()}
    truth = packed_oracle(layer.variant, exact, ends["cu_seqlens"], ends.get("cu_seqlens_k"))
    outputs = results(layer, **case.packed, **case.ends)
    assert largest_difference(outputs, truth) < 2e-6


def test_packing_that_ignores_a_documents_end_is_seen() -> None:
    """The comparison can fail: the same rows as one document give another result."""
    layer = sparsec.compile(small("full"), "interpreter")
    case = _case(layer, LENGTHS, LENGTHS)
    merged = torch.tensor([0, sum(LENGTHS)], dtype=torch.int32)
    (output,) = results(layer, **case.packed, cu_seqlens=merged)
    (wanted,) = looped(layer, case)
    assert largest_difference([output], [wanted]) > 0.1


def test_new_lengths_build_no_kernel() -> None:
    layer = sparsec.compile(small("nsa"), "interpreter")
    case = _case(layer, (3, 20), (3, 20))
    results(layer, **case.packed, **case.ends)
    built = layer.builds
    for lengths in ((20, 3), (1, 0, 17), (40,), ()):
        case = _case(layer, lengths, lengths) if lengths else case
        results(layer, **case.packed, **case.ends)
    assert layer.builds == built


def test_positions_of_first_queries_may_be_given() -> None:
    """Chunked prefill: the last queries of each document, at positions that are given instead of counted back."""
    layer = sparsec.compile(small("streaming"), "interpreter")
    case = _case(layer, (2, 5), (9, 30))
    offsets = torch.tensor([7, 25], dtype=torch.int32)
    (counted,) = results(layer, **case.packed, **case.ends)
    (given,) = results(layer, q_offset=offsets, **case.packed, **case.ends)
    (other,) = results(layer, q_offset=3, **case.packed, **case.ends)
    assert torch.equal(counted, given)
    assert not torch.equal(counted, other)


def test_longer_than_needed_grids_change_nothing() -> None:
    layer = sparsec.compile(small("moba"), "interpreter")
    case = _case(layer, LENGTHS, LENGTHS)
    (exact,) = results(layer, **case.packed, **case.ends)
    (wide,) = results(layer, **case.packed, **case.ends, max_seqlen_q=64, max_seqlen_k=80)
    assert torch.equal(exact, wide)


def test_heads_may_come_first_by_stride() -> None:
    layer = sparsec.compile(small("hsa"), "interpreter")
    case = _case(layer, LENGTHS, LENGTHS)
    wanted = results(layer, **case.packed, **case.ends)
    strided = {n: x.transpose(0, 1).contiguous().transpose(0, 1) if x.dim() == 3 else x for n, x in case.packed.items()}
    assert not strided["q"].is_contiguous()
    assert largest_difference(results(layer, **strided, **case.ends), wanted) == 0


def _held(ready: Ready) -> int:
    """Elements of all buffers and scratch of a call."""
    buffers = [b.size(ready.dims) for b in ready.plan.buffers if b.role != "input"]
    return sum(map(prod, [*buffers, *(shape for fixed in ready.fixed.values() for _, shape, _ in fixed.scratch)]))


@pytest.mark.parametrize("name", ["nsa", "hsa-mean", "streaming", "moba"])
def test_memory_follows_the_tokens_and_not_the_longest_document(name: str) -> None:
    layer = sparsec.compile(small(name), "interpreter")
    lengths = [*[40] * 60, 6000]
    shapes = {n: [sum(lengths), *(4 if str(d) == "H" else 2 if str(d) == "HKV" else 16 for d in spec.shape[2:])]
              for n, spec in layer.variant.inputs.items()}  # fmt: skip
    tensors = [torch.empty(shape) for shape in shapes.values()]
    ends = torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()], dtype=torch.int32)
    documents = layer.packed.documents(tensors, Given(ends, None, None, None, None))
    packed = layer.packed.ready(layer.packed.views(tensors), documents, layer.names)
    dense = layer.ready([x[None] for x in tensors], None, layer.names)
    assert _held(packed) < 1.5 * _held(dense)
