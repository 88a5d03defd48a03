"""What a packed call refuses, in sentences; and what callers do around it: left padding, autocast, a second call."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import sparsec
from sparsec.ir.error import InputError
from sparsec.plan.plan import PlanError
from sparsec.runtime.compiled import Compiled
from sparsec.runtime.packed.documents import Given
from sparsec.runtime.packed.segments import check_count
from sparsec.testing.inputs.variants import small
from sparsec.testing.whole.packed import PackedCase, cotangents_like, largest_difference, looped, packed_case, results


@pytest.fixture(scope="module")
def layer() -> Compiled:
    return sparsec.compile(small("full"), "interpreter")


@pytest.fixture(scope="module")
def landmarks() -> Compiled:
    return sparsec.compile(small("hsa"), "interpreter")


def _ends(*ends: int, dtype: torch.dtype = torch.int32) -> Tensor:
    return torch.tensor(ends, dtype=dtype)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"cu_seqlens": [0, 5]}, "cu_seqlens: a list"),
        (
            {"cu_seqlens": _ends(0, 2, 5, dtype=torch.int64)},
            "cu_seqlens: dtype torch.int64: cumulated lengths are int32",
        ),
        ({"cu_seqlens": _ends(0, 5)[None]}, r"cu_seqlens: shape \(1, 2\)"),
        ({"cu_seqlens": _ends(1, 5)}, "cu_seqlens: it starts at 1"),
        ({"cu_seqlens": _ends(0, 4, 2, 5)}, r"cu_seqlens: 4 is followed by 2 \(document 1\)"),
        ({"cu_seqlens": _ends(0, 2, 4)}, "cu_seqlens: it ends at 4: the packed tensors have 5 rows"),
        ({"cu_seqlens": _ends(0, 2, 5), "max_seqlen_q": 2}, "max_seqlen_q: 2: a document has 3 tokens"),
        ({"cu_seqlens": _ends(0, 2, 5), "max_seqlen_q": 2.5}, "max_seqlen_q: 2.5"),
        ({"cu_seqlens": _ends(0, 2, 5), "cu_seqlens_k": _ends(0, 5)}, "cu_seqlens_k: 1 documents, cu_seqlens has 2"),
        ({"cu_seqlens": _ends(0, 2, 5), "q_offset": _ends(0)}, "q_offset: torch.int32 of shape"),
        ({"cu_seqlens_k": _ends(0, 2, 5)}, "cu_seqlens: a NoneType"),
    ],
)
def test_wrong_ends_are_named(layer: Compiled, given: dict[str, Any], sentence: str) -> None:
    case = packed_case(layer.variant, (2, 3), (2, 3))
    with pytest.raises(InputError, match=sentence):
        results(layer, **case.packed, **given)


def test_ends_on_another_device_are_refused_after_a_call_on_theirs() -> None:
    """The table of that call lies on its device: kernels of another would read memory that is not theirs."""
    layer = sparsec.compile(small("full"), "interpreter")
    case = packed_case(layer.variant, (2, 3), (2, 3))
    inputs, given = [case.packed[name] for name in layer.names], Given(_ends(0, 2, 5), None, None, None, None)
    assert layer.packed.documents(inputs, given).table.device.type == "cpu"
    with pytest.raises(InputError, match="cu_seqlens: on cpu: it lives with the inputs, on meta"):
        layer.packed.documents([x.to("meta") for x in inputs], given)


def test_inputs_may_be_declared_in_any_order() -> None:
    """Rows of chunks that come first are taken for no tokens."""
    text, last = small("hsa").text().replace("TQ", "T").replace("TK", "T"), ", l: [B, (T + 15) // 16, HKV, DR]"
    assert last in text
    first = text.replace(last, "").replace("hsa(", f"hsa({last[2:]}, ")
    layer = sparsec.compile(sparsec.parse(first), "interpreter")
    case = packed_case(layer.variant, (3, 20), (3, 20))
    assert largest_difference(results(layer, **case.packed, **case.ends), looped(layer, case)) == 0


def test_more_documents_than_a_grid_holds_are_refused_on_gpus() -> None:
    check_count("cu_seqlens", 65536, "cpu")
    with pytest.raises(InputError, match="cu_seqlens: 65536 documents: a GPU's grid has room for 65535"):
        check_count("cu_seqlens", 65536, "cuda")


def test_what_is_no_tensor_is_named(layer: Compiled) -> None:
    case = packed_case(layer.variant, (2, 3), (2, 3))
    with pytest.raises(InputError, match="k: a list: inputs are tensors"):
        results(layer, **{**case.packed, "k": [1.0]}, **case.ends)


def test_a_batch_is_refused_where_rows_are_packed(layer: Compiled) -> None:
    case = packed_case(layer.variant, (2, 3), (2, 3))
    with pytest.raises(InputError, match=r"q: shape \(1, 5, 4, 16\): packed, it is \[TQ, H, D\]"):
        results(layer, **{**case.packed, "q": case.packed["q"][None]}, **case.ends)


def test_inputs_of_different_rows_are_named(layer: Compiled) -> None:
    case = packed_case(layer.variant, (2, 3), (2, 3))
    with pytest.raises(InputError, match="v: 4 rows: `k` has 5 rows of all documents"):
        results(layer, **{**case.packed, "v": case.packed["v"][:4]}, **case.ends)


def test_landmarks_are_counted_by_document(landmarks: Compiled) -> None:
    case = packed_case(landmarks.variant, (17, 3), (17, 3))
    name = next(n for n, x in case.packed.items() if x.shape[0] == 3)
    with pytest.raises(InputError, match=r"inputs with 2 rows of chunks: each document has .* of them, 3 in all"):
        results(landmarks, **{**case.packed, name: case.packed[name][:2]}, **case.ends)


def test_what_documents_cannot_share_is_refused() -> None:
    text = """
variant by_pair(q: [B, TQ, H, D], k: [B, TK, HKV, D], v: [B, TK, HKV, DV], pairs: [B, TQ, TK]) {
  memory = tokens(k, v)
  return attend(q, memory, pairs=pairs) {bias = score + pairs[b, i, j]}
}
"""
    layer = sparsec.compile(sparsec.parse(text), "interpreter")
    with pytest.raises(PlanError, match=r"takes no packed documents: `pairs`, declared .*, has several lengths"):
        given = {"q": torch.zeros(2, 4, 16), "k": torch.zeros(2, 2, 16), "v": torch.zeros(2, 2, 16)}
        results(layer, **given, pairs=torch.zeros(2, 2, 2), cu_seqlens=_ends(0, 2))


def _padded(case: PackedCase, lengths: list[int], width: int) -> dict[str, Tensor]:
    """Documents at the ends of rows of a batch, with noise before them; and the batch as one row of tokens."""
    made = {}
    for name in case.packed:
        rows = torch.randn(len(lengths), width, *case.documents[0][name].shape[2:])
        for n, length in enumerate(lengths):
            rows[n, width - length :] = case.documents[n][name][0]
        made[name] = rows
    return made


def test_left_padding_is_a_document_before_each_document(layer: Compiled) -> None:
    lengths, width = [3, 20, 1], 20
    case = packed_case(layer.variant, lengths, lengths)
    batch = {n: x.requires_grad_() for n, x in _padded(case, lengths, width).items()}
    sizes = torch.tensor(lengths)
    ends = torch.stack([width - sizes, sizes], 1).flatten().cumsum(0)
    cu_seqlens = torch.nn.functional.pad(ends, (1, 0)).to(torch.int32)
    (output,) = results(layer, **{n: x.flatten(0, 1) for n, x in batch.items()}, cu_seqlens=cu_seqlens)
    rows = output.unflatten(0, (len(lengths), width))
    found = torch.cat([rows[n, width - length :] for n, length in enumerate(lengths)])
    assert largest_difference([found], looped(layer, case)) == 0
    found.square().sum().backward()
    for x in batch.values():
        assert x.grad is not None and not x.grad[0, : width - lengths[0]].any()


def test_autocast_and_gradients_of_strided_outputs(layer: Compiled) -> None:
    case = packed_case(layer.variant, (2, 3), (2, 3))
    with torch.autocast("cpu", torch.bfloat16):
        (half,) = results(layer, **case.packed, **case.ends)
    assert half.dtype is torch.bfloat16
    leaves = {n: x.clone().requires_grad_() for n, x in case.packed.items()}
    (output,) = results(layer, **leaves, **case.ends)
    (seed,) = cotangents_like([output])
    output.backward(seed.transpose(0, 1).contiguous().transpose(0, 1))
    wanted = {n: x.clone().requires_grad_() for n, x in case.packed.items()}
    (other,) = results(layer, **wanted, **case.ends)
    other.backward(seed)
    assert all(torch.equal(leaves[n].grad, wanted[n].grad) for n in leaves)  # type: ignore[arg-type]


def test_the_table_is_made_anew_when_ends_change_in_place(layer: Compiled) -> None:
    case = packed_case(layer.variant, (2, 3), (2, 3))
    ends = case.ends["cu_seqlens"].clone()
    (first,) = results(layer, **case.packed, cu_seqlens=ends)
    table = layer.packed.face.last
    (again,) = results(layer, **case.packed, cu_seqlens=ends)
    assert layer.packed.face.last is table and torch.equal(first, again)
    ends[1] = 4
    (moved,) = results(layer, **case.packed, cu_seqlens=ends)
    assert not torch.equal(first, moved)


@pytest.mark.slow
def test_the_fast_way_of_a_second_call_gives_the_same() -> None:
    layer = sparsec.compile(small("full"), "cpu")
    case = packed_case(layer.variant, (5, 40), (5, 40))
    calls = [results(layer, **case.packed, **case.ends) for _ in range(3)]
    other = packed_case(layer.variant, (40, 5), (40, 5))
    calls.append(results(layer, **{**other.packed}, **other.ends))
    assert all(largest_difference(c, calls[0]) == 0 for c in calls[:3])
    assert largest_difference(calls[3], looped(layer, other)) == 0
