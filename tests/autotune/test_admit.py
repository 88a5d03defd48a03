"""Admission on the tile interpreter: right kernels pass under every schedule, mutants are refused with a sentence."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import sparsec
from sparsec.autotune.admit import Admission, failure
from sparsec.autotune.cases import Case, Tokens, cases, reach, shrunk
from sparsec.autotune.rows import sampled_rows
from sparsec.autotune.space import Space
from sparsec.autotune.trial import Rejection, Unfit
from sparsec.autotune.verdict import unlike
from sparsec.ir.lengths import lengths
from sparsec.ir.variant import Variant
from sparsec.lower.registry import default, lower_kernel, space
from sparsec.plan.plan import Plan
from sparsec.plan.specs import GatheredAttention, Selector, Spec, Summarise, TiledAttention
from sparsec.runtime.compiled import Compiled, compile
from sparsec.runtime.kernel import BuiltKernel
from sparsec.runtime.launch import Bind
from sparsec.scalar.expr import Expr, var
from sparsec.testing.inputs.variants import small as small_variant
from sparsec.testing.mistakes.mutants import mutated
from sparsec.testing.mistakes.named import boundary_column_unmasked
from sparsec.tile.schedule import Schedule

Mutant = Callable[[Any], Any]

SIZES: dict[str, Any] = {"H": 4, "HKV": 2, "D": 16, "DV": 16, "DR": 16}
SMALL = Space(Schedule(rows=16, block=16, split_dims=False), {})


def planned(
    variant: Variant, length: int, dtype: str = "float32", **sizes: int
) -> tuple[Compiled, Plan, dict[str, Tensor]]:
    compiled = compile(variant, "interpreter")
    known = {str(d) for spec in variant.inputs.values() for d in spec.shape}
    dims = {n: s for n, s in {**SIZES, **sizes}.items() if n in known}
    inputs = sparsec.inputs(variant, dtype=dtype, T=length, **dims)
    return compiled, compiled.plan(*compiled.bind(inputs)), inputs


class Court:
    """The admission of one kernel of a variant, with mutants of it to judge."""

    def __init__(
        self, variant: Variant, kind: type[Spec], length: int = 75, space: Space = SMALL, **sizes: Any
    ) -> None:
        compiled, plan, inputs = planned(variant, length, **sizes)
        self.target, self.folder = compiled.target, compiled.cache_dir
        self.kernel = next(k for k in plan.kernels if isinstance(k.spec, kind))
        self.cases = cases(compiled, plan, inputs, None, self.kernel, space)
        self.admission = Admission(self.kernel, self.cases)

    def judge(self, change: Mutant = lambda spec: spec, **fields: Any) -> Rejection | None:
        spec = change(self.kernel.spec)
        schedule = replace(default(spec, "tvm:llvm"), **fields)
        return self.admission.judge(BuiltKernel(replace(self.kernel, spec=spec), schedule, self.target, self.folder))

    def refuses(self, change: Mutant) -> bool:
        found = self.judge(change)
        assert found is None or (found.why == "wrong result" and "TQ = " in found.reason)
        return found is not None


@pytest.fixture(scope="module")
def window() -> Court:
    return Court(sparsec.preset("streaming", window=24, sinks=4), TiledAttention, H=2, HKV=1)


def longest(case: Case) -> int:
    """The larger length of a case."""
    return case.lengths.longest(case.dims)


def seen(change: Callable[[Expr], Expr]) -> Mutant:
    """Another mask."""

    def mutate(spec: Spec) -> Spec:
        assert isinstance(spec, TiledAttention) and spec.pieces[0].where is not None
        return replace(spec, pieces=(replace(spec.pieces[0], where=change(spec.pieces[0].where)),))

    return mutate


QUERY, KEY = var("i"), var("j")


@pytest.mark.parametrize("rows", [8, 16, 32])
@pytest.mark.parametrize("block", [16, 32])
@pytest.mark.parametrize("phases", ["branch", "split"])
def test_a_right_kernel_is_admitted_under_every_schedule(window: Court, rows: int, block: int, phases: str) -> None:
    assert window.judge(rows=rows, block=block, phases=phases) is None


@pytest.mark.parametrize(
    "mutant",
    [
        pytest.param(seen(lambda where: where & (QUERY - KEY < 23)), id="a boundary column masked"),
        pytest.param(
            seen(lambda where: where | ((KEY <= QUERY + 1) & (QUERY - KEY < 24))), id="a boundary column unmasked"
        ),
        pytest.param(seen(lambda where: where & ((KEY < 32) | (KEY >= 48))), id="a tile skipped"),
        pytest.param(seen(lambda where: where & (KEY >= 1)), id="an index off by one"),
        pytest.param(lambda spec: replace(spec, scale=spec.scale * 1.01), id="a scale off by a hundredth"),
        pytest.param(lambda spec: replace(spec, sink="zero"), id="a sink too many"),
    ],
)
def test_a_wrong_kernel_is_refused(window: Court, mutant: Mutant) -> None:
    assert window.refuses(mutant)


class Idle(Bind):
    """A program that writes nothing."""

    def __call__(self, tensors: Sequence[Tensor], params: Mapping[str, int]) -> Callable[[], None]:
        return lambda: None


def test_what_a_kernel_leaves_unwritten_is_seen(window: Court) -> None:
    built = BuiltKernel(window.kernel, default(window.kernel.spec, "tvm:llvm"), window.target, window.folder)
    built._binds = [(program, Idle()) for program, _ in built._binds]
    found = window.admission.judge(built)
    assert found is not None and "not finite" in found.reason


def test_a_row_that_no_sample_hits_is_held_to_an_admitted_kernel() -> None:
    court = Court(sparsec.preset("streaming", window=24, sinks=4), TiledAttention, 200, H=1, HKV=1)
    low, small, full = court.cases
    assert (
        not low.whole
        and longest(low) == 81
        and not small.whole
        and full.whole
        and longest(small) < 140
        and longest(full) == 200
    )
    row = next(r for r in range(150, 195) if r not in sampled_rows(200, torch.device("cpu")))
    late = seen(lambda where: where & ((row > QUERY) | (row < QUERY) | (row - 8 > KEY)))
    assert court.judge() is None
    found = court.judge(late)
    assert found is not None and "TQ = 200" in found.reason and "admitted" in found.reason


def let_a_padded_key_through(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on kernels take ``key <= TK`` for ``key < TK``."""
    monkeypatch.setattr(
        "sparsec.runtime.kernel.lower_kernel",
        lambda spec, schedule: mutated(lower_kernel(spec, schedule), boundary_column_unmasked),
    )


def test_a_padded_key_among_many_is_seen_where_true_scores_are_low(monkeypatch: pytest.MonkeyPatch) -> None:
    wide = Space(Schedule(rows=128, block=128), {})
    court = Court(small_variant("full-everywhere"), TiledAttention, 529, wide, dtype="bfloat16", H=1, HKV=1)
    low, full = court.cases
    assert not low.whole and not full.whole and longest(low) == longest(full) == 529
    assert court.judge() is None
    let_a_padded_key_through(monkeypatch)
    found = court.judge()
    assert found is not None and found.why == "wrong result"
    court.admission = Admission(court.kernel, [full])
    assert court.judge() is None, "ordinary scores tell it too: this test shows nothing"


@pytest.mark.parametrize("name,kind", [("msa-window", TiledAttention), ("open-chunks", GatheredAttention)])
def test_low_scores_alone_show_a_padded_key(monkeypatch: pytest.MonkeyPatch, name: str, kind: type[Spec]) -> None:
    court = Court(small_variant(name), kind, 67, H=2, dtype="bfloat16")
    court.admission = Admission(court.kernel, court.cases[:1])
    assert court.judge() is None
    let_a_padded_key_through(monkeypatch)
    found = court.judge()
    assert found is not None and found.why == "wrong result"


@pytest.mark.parametrize(
    "name,kind",
    [("msa-window", TiledAttention), ("moba", GatheredAttention), ("nsa", Selector), ("hsa-softmax-sink", Selector)],
)
@pytest.mark.parametrize("length", [2, 40])
def test_low_scores_admit_right_kernels(name: str, kind: type[Spec], length: int) -> None:
    court = Court(small_variant(name), kind, length, dtype="float16")
    assert len(court.cases) == 2 and longest(court.cases[0]) == length - 1
    assert court.judge() is None


def test_a_kernel_without_keys_has_no_low_scores() -> None:
    court = Court(sparsec.preset("nsa", block=16, size=8, stride=4, k=4, window=16), Summarise)
    assert [case.whole for case in court.cases] == [False]


HSA = {"chunk": 16, "k": 2}


@pytest.fixture(scope="module", params=["stick", "softmax"])
def selector(request: pytest.FixtureRequest) -> Court:
    return Court(sparsec.preset("hsa", weights=request.param, **HSA), Selector)


def test_a_right_selector_is_admitted(selector: Court) -> None:
    assert selector.judge() is None and selector.judge(rows=8, block=8) is None


@pytest.mark.parametrize(
    "mutant",
    [
        pytest.param(lambda spec: replace(spec, eligible=16 * var("c") + 15 <= QUERY), id="an ineligible chunk"),
        pytest.param(lambda spec: replace(spec, forced=var("c").__eq__(0)), id="a chunk forced"),
        pytest.param(lambda spec: replace(spec, order="oldest"), id="the wrong order"),
        pytest.param(lambda spec: replace(spec, scale=-spec.scale), id="the worst instead of the best"),
        pytest.param(lambda spec: replace(spec, weights="sigmoid"), id="other weights"),
        pytest.param(lambda spec: replace(spec, k=1), id="one chunk too few"),
    ],
)
def test_a_wrong_selector_is_refused(selector: Court, mutant: Mutant) -> None:
    assert selector.refuses(mutant)


def test_chosen_chunks_are_attended_right_or_refused() -> None:
    court = Court(sparsec.preset("hsa", **HSA), GatheredAttention)
    assert court.judge() is None
    assert court.refuses(lambda spec: replace(spec, slots=1))
    assert court.refuses(lambda spec: replace(spec, scale=spec.scale * 1.01))


def test_summaries_are_right_or_refused() -> None:
    court = Court(sparsec.preset("nsa", block=16, size=8, stride=4, k=4, window=16), Summarise)
    assert court.judge() is None
    assert court.refuses(lambda spec: replace(spec, fn="max"))


def test_the_reduced_length_reaches_past_the_window_and_no_further() -> None:
    variant = sparsec.preset("streaming", window=1024, sinks=4)
    _, plan, _ = planned(variant, 8)
    dims = {"B": 1, "TQ": 32768, "TK": 32768, "H": 4, "HKV": 2, "D": 16, "DV": 16, "q_offset": 0}
    wide = Space(Schedule(), {"rows": (64, 128), "block": (32, 128)})
    length = reach(Tokens(plan.kernels[0], lengths(variant), dims), wide)
    assert 1024 + 2 * 128 + 2 * 128 < length < 2048 and length % 2
    short = {**dims, "TQ": 512, "TK": 512}
    assert reach(Tokens(plan.kernels[0], lengths(variant), short), SMALL) < 128


def test_reduced_inputs_keep_lists_within_their_chunks() -> None:
    variant = sparsec.preset("nsa", selection="given", block=16, size=8, stride=4, k=4, window=16)
    compiled, _, inputs = planned(variant, 300)
    dims, _ = compiled.bind(inputs)
    small, offset = shrunk(compiled.graph, inputs, dims, 101, None)
    assert offset is None and compiled.bind(small)[0]["TK"] == 101
    lists = [x for x in small.values() if x.dtype == torch.int32]
    assert lists and all(int(x.max()) <= 100 // 16 and int(x.min()) == -1 for x in lists)


def test_queries_stay_at_the_end_of_the_keys() -> None:
    variant = sparsec.preset("streaming", window=24, sinks=4)
    compiled = compile(variant, "interpreter")
    inputs = sparsec.inputs(variant, TQ=16, TK=300, **{n: s for n, s in SIZES.items() if n != "DR"})
    dims, _ = compiled.bind(inputs, 250)
    small, offset = shrunk(compiled.graph, inputs, dims, 101, 250)
    assert offset == 250 - (300 - 101) and small["q"].shape[1] == 16 and small["k"].shape[1] == 101


def test_weights_are_compared_where_lists_are_the_same() -> None:
    _, plan, _ = planned(small_variant("hsa-softmax-sink"), 40)
    kernel = next(k for k in plan.kernels if isinstance(k.spec, Selector))
    (ids,), (weights,) = ([n for n, _, p in kernel.results if p == part] for part in ("indices", "weights"))
    admitted = {ids: torch.arange(6).reshape(1, 2, 1, 3), weights: torch.rand(1, 2, 1, 3)}
    spoiled = {ids: admitted[ids].clone(), weights: admitted[weights].clone()}
    assert unlike(kernel, spoiled, admitted) is None
    spoiled[weights][0, 1] += 1
    assert "disagrees" in str(unlike(kernel, spoiled, admitted))
    spoiled[ids][0, 1] += 1
    assert unlike(kernel, spoiled, admitted) is None, "rows of other lists are held to the oracle"


def test_failures_have_kinds() -> None:
    out_of = RuntimeError("out of resource: shared memory, Required: 300000, Hardware limit: 232448.")
    assert failure(out_of).why == "shared memory"
    assert failure(RuntimeError("boom")).why == "crash"
    with pytest.raises(Unfit, match="start again") as lost:
        failure(RuntimeError("CUDA error: an illegal memory access was encountered"))
    assert lost.value.device_lost and lost.value.rejection.why == "crash"


def test_every_kernel_of_a_space_has_its_default(tmp_path: Path) -> None:
    for name in ("streaming", "hsa", "nsa", "moba", "infllm2"):
        _, plan, _ = planned(sparsec.preset(name), 8, D=64, DV=64, DR=64)
        for target in ("tvm:llvm", "triton:sm_90"):
            for kernel in plan.kernels:
                made = Space(default(kernel.spec, target), space(kernel.spec, target))
                assert made.schedule(made.params(made.default)) == made.default
