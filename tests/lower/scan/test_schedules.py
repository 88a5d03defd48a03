"""Which form of a scan is the default where."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sparsec.autotune.space import Space, encode
from sparsec.lower import segments
from sparsec.lower.registry import default, known, lower_kernel, space
from sparsec.testing.kernels.scan import Setting

LAYER = Setting("delta", "scalar", True, heads=16, state_heads=16, rows=128, cols=128, dtype="bfloat16")
GPU = "triton:sm_90"


@pytest.mark.parametrize(
    ("s", "target", "order"),
    [
        (LAYER, GPU, "chunk"),
        (replace(LAYER, decay="none"), GPU, "chunk"),
        (replace(LAYER, rule="additive"), GPU, "chunk"),
        (replace(LAYER, decay="none", rows=64), GPU, "chunk"),
        (replace(LAYER, decay="none", beta=False), GPU, "chunk"),
        (replace(LAYER, decay="none", rows=256, cols=256), GPU, "token"),
        (replace(LAYER, decay="key"), GPU, "chunk"),
        (replace(LAYER, rule="additive", decay="key"), GPU, "chunk"),
        (replace(LAYER, rule="additive", decay="key", rows=64), GPU, "chunk"),
        (replace(LAYER, decay="none", erase=True), GPU, "token"),
        (replace(LAYER, dtype="float32"), GPU, "token"),
        (replace(LAYER, rows=32), GPU, "token"),
        (LAYER, "tvm:c", "token"),
    ],
)
def test_defaults(s: Setting, target: str, order: str) -> None:
    for spec in (s.scan(), s.grad()):
        schedule = default(spec, target)
        assert schedule.order == order
        assert lower_kernel(spec, schedule).steps


@pytest.mark.parametrize(
    ("s", "columns", "stages"),
    [
        (LAYER, 64, 2),
        (replace(LAYER, rule="additive"), 128, 3),
        (replace(LAYER, rule="additive", decay="key"), 128, 3),
        (replace(LAYER, decay="key"), 128, 2),
        (replace(LAYER, decay="key", erase=True), 128, 2),
        (replace(LAYER, decay="key", cols=64), 64, 2),
    ],
)
def test_outputs_of_two_groups_of_warps(s: Setting, columns: int, stages: int) -> None:
    """Forward as an H100 measured; backward one group."""
    found = default(s.scan(), GPU)
    assert (found.value_block, found.warps, found.stages) == (columns, columns // 16, stages)
    back = default(s.grad(), GPU)
    assert back.order == "token" or (back.value_block, back.warps) == (64, 4)


@pytest.mark.parametrize(
    ("s", "exact"),
    [
        (replace(LAYER, decay="none", rows=64), True),
        (replace(LAYER, decay="none", beta=False), True),
        (replace(LAYER, decay="none"), False),
        (replace(LAYER, decay="key", rows=64), True),
        (replace(LAYER, decay="key", rows=64, erase=True, reads="undecayed"), True),
        (replace(LAYER, decay="key"), False),
        (replace(LAYER, rule="additive", decay="key", rows=64), False),
        (replace(LAYER, rows=64), False),
    ],
)
def test_where_answers_come_back_and_nothing_fades_chunks_are_exact(s: Setting, exact: bool) -> None:
    for spec in (s.scan(), s.grad()):
        assert (default(spec, GPU).order, default(spec, GPU).exact) == ("chunk", exact)


def test_erase_vectors_go_by_chunks_in_both_directions() -> None:
    s = replace(LAYER, decay="key", erase=True, reads="undecayed")
    assert [default(spec, GPU).order for spec in (s.scan(), s.grad())] == ["chunk", "chunk"]


def test_queries_that_ask_one_state_go_by_chunks() -> None:
    s = replace(LAYER, state_heads=4)
    assert [default(spec, GPU).order for spec in (s.scan(), s.grad())] == ["chunk", "chunk"]


def test_shared_queries_go_by_chunks() -> None:
    spec = LAYER.scan()
    shared = replace(spec, reads=(replace(spec.reads[0], query_heads=8),))
    assert default(shared, GPU).order == "chunk"
    assert lower_kernel(shared, default(spec, GPU)).steps


def test_documents_go_by_chunks() -> None:
    for spec in (LAYER.scan(), LAYER.grad()):
        own = segments.schedule(spec, default(spec, GPU))
        assert (own.order, own.documents, own.keep) == ("chunk", True, False) and lower_kernel(spec, own).steps


@pytest.mark.parametrize(
    "s", [replace(LAYER, decay="key", rows=32), replace(LAYER, erase=True, reads="undecayed"), replace(LAYER, rows=32)]
)
def test_the_tuner_tries_chunks_where_they_are_not_the_default(s: Setting) -> None:
    forward, back = s.scan(), s.grad()
    for spec in (forward, back):
        found, usual = known(spec, GPU), Space(default(spec, GPU), space(spec, GPU))
        both = [("chunk", x, n) for x in (False, True) for n in (32, 64)]
        assert sorted((k.order, k.exact, k.rows) for k in found) == both
        for schedule in found:
            assert usual.schedule(usual.params(schedule)) == schedule
            assert lower_kernel(spec, schedule).steps
            assert schedule.keep == (spec is not forward)
        tried = usual.schedule(usual.params(usual.default) | {"order": encode("chunk")})
        assert tried.keep == (spec is not forward)  # whichever chunks are tried, a backward reads what its forward made


def test_nothing_else_is_known() -> None:
    additive = replace(LAYER, rule="additive")
    assert known(additive.scan(), GPU) == known(replace(LAYER, decay="key").scan(), "tvm:c") == ()
    assert known(LAYER.scan(), GPU) == (replace(default(LAYER.scan(), GPU), exact=True),)
    assert "order" not in space(replace(LAYER, state_heads=4, final=True).grad(), GPU)
