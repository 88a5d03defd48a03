"""What a step launches: joined programs, branches merged from parts, tokens counted; no memory is read before it is
written."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from sparsec.frontends.preset import preset
from sparsec.ir.variant import Variant
from sparsec.lower.decode import company, together
from sparsec.lower.decode.choice import choices
from sparsec.lower.decode.schedules import schedule
from sparsec.oracle.error import check
from sparsec.oracle.truth import oracle
from sparsec.plan.grad_specs import AnySpec
from sparsec.plan.specs import GatheredAttention
from sparsec.runtime.compiled import Compiled, compile
from sparsec.runtime.decode import kernels as decode_kernels
from sparsec.runtime.decode import space
from sparsec.testing.inputs.variants import small
from sparsec.testing.triton.decode import gpu_schedule
from sparsec.testing.whole.decoding import Tensors, decoded, draw
from sparsec.tile.schedule import Schedule

LENGTH, STEPS = 41, (30, 1, 1, 2, 1, 6)


def nsa() -> Variant:
    """NSA whose selector takes its logits from the compression."""
    return preset("nsa", block=16, k=4, size=8, stride=4, window=24, rounding="storage")


def outputs(made: Compiled) -> tuple[Tensors, Tensors]:
    """Of all steps, and of the oracle."""
    inputs = draw(made.variant, LENGTH)
    cache = made.init_cache(2, 96, page=16, step=8, deterministic=False)
    found = decoded(made, cache, inputs, STEPS)
    assert cache.lengths is not None and cache.lengths.tolist() == [LENGTH, LENGTH] == list(cache.known_lengths)
    truth = oracle(made.variant, inputs, form="vector")
    return found, truth if isinstance(truth, tuple) else (truth,)


def test_programs_that_do_not_need_each_other_are_one_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same bits as apart from each other."""
    monkeypatch.setattr(Compiled, "schedule", staticmethod(gpu_schedule))
    made = compile(nsa(), "interpreter")
    (together_, *_), _ = outputs(made)
    launches = made.decoder.kept()[-1].launches
    joined = [x.step.program.name for x in launches if len(x.kernels) > 1]
    assert joined == ["summarise_summaries_k_and_summarise_summaries_v", "attend_out_parts_and_attend_out_3_parts"]
    assert [x.counts for x in launches] == [False] * (len(launches) - 1) + [True]
    monkeypatch.setattr(decode_kernels, "fit", lambda first, second, early: False)
    other = compile(nsa(), "interpreter")
    (apart, *_), _ = outputs(other)
    assert all(len(x.kernels) == 1 for x in other.decoder.kept()[-1].launches)
    assert torch.equal(together_, apart)


def test_branches_are_merged_from_their_parts() -> None:
    made = compile(nsa(), "interpreter")
    outputs(made)
    programs = [x.step.program for x in made.decoder.kept()[-1].launches]
    assert not [p.name for p in programs if p.name.startswith("attend") and p.name.endswith("_merge")]
    read = {t.name for t in programs[-1].tensors}
    assert {"attend_out_part", "attend_out_2_part", "attend_out_3_part"} < read and "out" not in read


def test_what_one_writes_keeps_programs_apart() -> None:
    made = compile(nsa(), "interpreter")
    outputs(made)
    steps = [s for k in made.decoder.kept()[-1].kernels for s in k.steps]
    best = next(s for s in steps if s.program.name.endswith("_best"))
    masses = next(s for s in steps if s.program.name.endswith("_masses"))
    assert not together.apart(masses.program, best.program) and not together.fit(masses, best)


@pytest.mark.parametrize("name", ["straight-weights", "hsa", "moba", "streaming", "bias-alone", "nsa-storage"])
@pytest.mark.parametrize("gpu", [True, False], ids=["gpu-schedules", "own"])
def test_no_memory_is_read_before_it_is_written(name: str, gpu: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fresh memory is NaN, or an index far outside."""
    empty = torch.empty

    def poisoned(*shape: Any, **how: Any) -> torch.Tensor:
        x = empty(*shape, **how)
        return x.fill_(float("nan") if x.is_floating_point() else -(2**30))

    if gpu:
        monkeypatch.setattr(Compiled, "schedule", staticmethod(gpu_schedule))
    made = compile(nsa() if name == "nsa-storage" else small(name), "interpreter")
    monkeypatch.setattr(torch, "empty", poisoned)
    for one, truth in zip(*outputs(made), strict=True):
        verdict = check(one, truth, "float32", "o")
        assert verdict, verdict.sentence


@pytest.mark.parametrize("made_here", [True, False])
def test_chunks_of_several_tiles_are_shared_by_programs(made_here: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three chunks of two tiles each for two programs: the second begins in the middle of a chunk."""
    monkeypatch.setattr(Compiled, "schedule", staticmethod(gpu_schedule))
    if not made_here:
        monkeypatch.setattr(company, "choices", lambda kernels, outputs, order: {})
    made = compile(preset("nsa", block=128, k=3, size=32, stride=16, window=32), "interpreter")
    inputs = draw(made.variant, 520)
    cache = made.init_cache(2, 640, page=128, deterministic=False)
    found = decoded(made, cache, inputs, (515, 1, 4))
    (truth,) = (x for x in [oracle(made.variant, inputs, form="vector")] if isinstance(x, torch.Tensor))
    verdict = check(found[0][:, 515:], truth[:, 515:], "float32", "o")
    assert verdict, verdict.sentence
    names = [x.step.program.name for x in made.decoder.kept()[-1].launches]
    assert ("select_chosen_merge" in names) != made_here


@pytest.mark.parametrize("name", ["hsa", "moba", "minimax"])
def test_the_only_program_of_a_list_leaves_the_whole(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """No merge; where it is the last, it counts the tokens, whose lengths it reads itself."""

    def one(spec: AnySpec, found: Schedule, processors: int, batch: int) -> Schedule:
        made = schedule(spec, found, processors, batch)
        return replace(made, splits=1) if isinstance(spec, GatheredAttention) else made

    monkeypatch.setattr(Compiled, "schedule", staticmethod(gpu_schedule))
    monkeypatch.setattr(space, "schedule", one)
    made = compile(small(name), "interpreter")
    for found, truth in zip(*outputs(made), strict=True):
        verdict = check(found, truth, "float32", "o")
        assert verdict, verdict.sentence
    launches = made.decoder.kept()[-1].launches
    gathered = [
        x.step.program.name for x in launches if any(isinstance(k.kernel.spec, GatheredAttention) for k in x.kernels)
    ]
    assert len(gathered) == 1 and launches[-1].counts


def test_schedules_by_how_many_lists_there_are() -> None:
    """A program per list where lists fill the processors, several for each where they do not."""
    made = compile(preset("hsa"), "triton:sm_90")
    dims = {"TQ": 1, "TK": 65536, "H": 64, "HKV": 4, "D": 128, "DV": 128, "DR": 128, "q_offset": 65535}
    found = {}
    for batch in (1, 8, 32, 64):
        plan = made.plan({"B": batch, **dims}, "bfloat16")
        for kernel in plan.kernels:
            one = schedule(kernel.spec, made.schedule(kernel, {"B": batch, **dims}), 132, batch)
            found[batch, type(kernel.spec).__name__] = one.splits, one.stages
    assert [found[b, "GatheredAttention"] for b in (1, 8, 32, 64)] == [(8, 3), (8, 3), (1, 3), (1, 3)]
    assert [found[b, "Selector"] for b in (1, 8, 32, 64)] == [(64, 3), (16, 3), (16, 1), (8, 1)]


def with_weights(spec: AnySpec, name: str) -> AnySpec:
    """Attention over chunks that reads weights of another name."""
    return replace(spec, weights=name) if isinstance(spec, GatheredAttention) else spec


def test_attention_makes_the_list_whose_weights_it_reads() -> None:
    """Weights of another choice are not made beside the list: it stays as it is then."""
    made = compile(preset("hsa"), "triton:sm_90")
    dims = {"B": 1, "TQ": 1, "TK": 65536, "H": 64, "HKV": 4, "D": 128, "DV": 128, "DR": 128, "q_offset": 65535}
    plan = made.plan(dims, "bfloat16")
    pairs = [(k, schedule(k.spec, made.schedule(k, dims), 132, 32)) for k in plan.kernels]
    assert len(choices(pairs, set(plan.outputs), company.SHARED)) == 1
    others = [(replace(k, spec=with_weights(k.spec, "others")), s) for k, s in pairs]
    assert choices(others, set(plan.outputs), company.SHARED) == {}
