"""Costs: formulas bound what masks let through, agree with hand counts, and the peak of a plan is what is allocated."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsec.cli.setting import setting
from sparsec.plan.cost import cost
from sparsec.plan.memory import peak_bytes
from sparsec.plan.reach import keys_seen
from sparsec.scalar.evaluate import evaluate
from sparsec.scalar.expr import var
from sparsec.scalar.text import parse

MASKS = [
    "j <= i",
    "(j <= i) & (i - j < 7)",
    "(j <= i) & ((i - j < 5) | (j < 3))",
    "(j + 1) * 4 <= i",
    "j * 2 + 3 <= i",
    "i // 4 == j // 4",
    "(j <= i) & ((i - j) % 3 == 0)",
    "abs(i - j) < 4",
    "j < 6",
    "(j * 7 + i) % 5 == 0",
]


@given(mask=st.sampled_from(MASKS), queries=st.integers(1, 30), keys=st.integers(1, 30), offset=st.integers(0, 9))
def test_formulas_are_no_less_than_what_is_seen(mask: str, queries: int, keys: int, offset: int) -> None:
    where = parse(mask)
    pairs = itertools.product(range(offset, offset + queries), range(keys))
    seen = sum(bool(evaluate(where, {"i": i, "j": j})) for i, j in pairs)
    formula = keys_seen(where, var("N"))
    assert (
        seen
        <= float(evaluate(formula, {"TQ": queries, "q_offset": offset, "N": keys}))
        <= 2 * queries * keys + 30 * queries
    )


@pytest.mark.parametrize(
    ("mask", "expected"), [("(j <= i) & (i - j < 7)", 40 * 7), ("j <= i", 40 * 41 / 2), ("j < 6", 40 * 6)]
)
def test_bands_and_triangles(mask: str, expected: float) -> None:
    formula = keys_seen(parse(mask), var("TK"))
    assert evaluate(formula, {"TQ": 40, "TK": 40, "q_offset": 0}) == expected


def test_a_window_by_hand() -> None:
    chosen = setting(["streaming", "window=512", "sinks=64", "T=4096", "B=2", "H=8", "HKV=2"], "cpu")
    (kernel,) = chosen.plan.kernels
    found, params = cost(kernel.spec), {name: int(evaluate(e, chosen.dims)) for name, e in kernel.params}
    assert found.at(found.pairs, params) == 2 * 8 * 4096 * (512 + 64)
    assert found.at(found.flops, params) == 4 * 64 * 2 * 8 * 4096 * (512 + 64)
    assert found.at(found.bytes, params) == 4 * 2 * 4096 * 64 * (8 + 8 + 2 + 2)


@pytest.mark.parametrize("words", [["nsa"], ["hsa"], ["infllm2"], ["msa", "pattern=window+strided"], ["moba"]])
def test_every_kernel_has_a_cost(words: list[str]) -> None:
    chosen = setting([*words, "T=300"], "cpu")
    for kernel in chosen.plan.kernels:
        found, params = cost(kernel.spec), {name: int(evaluate(e, chosen.dims)) for name, e in kernel.params}
        assert found.at(found.flops, params) > 0 and found.at(found.bytes, params) > 0


def test_peak_memory_is_what_a_call_allocates() -> None:
    chosen = setting(["hsa", "chunk=16", "k=3", "T=67", "D=16", "DV=16", "DR=16", "B=1", "H=2", "HKV=1"], "interpreter")
    given_ = chosen.inputs()
    buffers = chosen.compiled.run_plan(chosen.plan, given_, chosen.dims)
    made = sum(x.numel() * x.element_size() for name, x in buffers.items() if name not in given_)
    assert peak_bytes(chosen.plan, chosen.dims) <= made
    assert peak_bytes(chosen.plan, chosen.dims, scratch={chosen.plan.kernels[-1].name: 1000}) <= made + 1000
