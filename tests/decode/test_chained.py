"""Launches of a step that start while the one before ends read before they wait what they would have read after."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

import sparsec
from sparsec.backends.triton.emit import emit
from sparsec.frontends.preset import preset
from sparsec.ir.variant import Variant, dim_names
from sparsec.lower.decode import chained
from sparsec.lower.decode.company import SHARED
from sparsec.lower.decode.schedules import schedule
from sparsec.lower.lowered import Step
from sparsec.plan.grad_specs import AnySpec
from sparsec.plan.specs import GatheredAttention, Selector, TiledAttention
from sparsec.runtime import launch
from sparsec.runtime.compiled import Compiled, compile
from sparsec.runtime.decode import appends, kernels, space
from sparsec.runtime.target import Target
from sparsec.testing.inputs.variants import small
from sparsec.testing.triton.decode import gpu_schedule
from sparsec.tile.interpreter import interpret
from sparsec.tile.memory import AccessError
from sparsec.tile.schedule import Schedule

SIZES: dict[str, Any] = {"B": 2, "H": 4, "HKV": 2, "D": 16, "DV": 16, "DR": 16, "DX": 24}
STEPS = (23, 1, 1, 2, 1, 1)
DESIGNS: dict[str, Variant] = {
    **{name: small(name) for name in ("hsa", "nsa", "moba", "streaming")},
    "sse": sparsec.preset("sse", rule="gdn", raw=True),
    "rsa": sparsec.preset("rsa", raw=True),
    "a state beside a window": sparsec.parse(
        """variant x(q: [B,T,H,D], k: [B,T,H,D], v: [B,T,H,DV]) { m = tokens(k, v)
           near = attend(q, m, mask(m) {where = (j <= i) & (i - j < 8)})
           return merge(recall(q, write(state() {heads = H}, k, v)), near) {fn = sum} }"""
    ),
}


class Early(launch.Bind):
    """A program that reads what is ready as early as it may, and finds that nobody touches what it may write early.

    Behind a launch that lets others start late that is once the head of its chain has ended, else before the head runs.
    """

    waiting: ClassVar[list[Early]] = []

    def __init__(self, step: Step) -> None:
        self.step = step
        self.then: dict[str, Tensor] = {}
        self.named: dict[str, Tensor] = {}

    def __call__(self, tensors: Sequence[Tensor], params: Mapping[str, int]) -> launch.Run:
        made = Early(self.step)
        made.named = {t.name: x for t, x in zip(self.step.program.tensors, tensors, strict=True)}
        Early.waiting.append(made)
        return lambda: made.run(params)

    def run(self, params: Mapping[str, int]) -> None:
        head = self.step.chain is not None and self.step.chain.head
        late = next((n for n, x in enumerate(Early.waiting) if x.step.chain and x.step.chain.late), len(Early.waiting))
        for other in Early.waiting[: late + 1] if head else ():
            other.look()
        for name in self.free():
            assert self.named[name].isnan().all(), f"{name} is written early, and later by another launch"
        interpret(self.step.program, {**self.named, **self.then}, params)
        for other in Early.waiting[late + 1 :] if head else ():
            other.look()
        Early.waiting = [] if head else Early.waiting

    def free(self) -> list[str]:
        chain = self.step.chain
        wanted = (chain and chain.free) or frozenset[str]()
        return [n for n, x in self.named.items() if n in wanted and x.is_floating_point()]

    def look(self) -> None:
        chain, own = self.step.chain, chained.written(self.step.program)
        ready = frozenset() if chain is None else chain.ready - own
        self.then = {n: x.clone() for n, x in self.named.items() if n in ready}
        for name in self.free():
            self.named[name].fill_(float("nan"))


def decoded(variant: Variant, folder: Path, **others: int) -> Tensor:
    """The first output of all steps."""
    made = compile(variant, "interpreter", folder)
    sizes = {n: s for n, s in {**SIZES, **others}.items() if n in dim_names(variant)}
    x = sparsec.inputs(variant, dtype="float32", seed=0, T=sum(STEPS), **sizes)
    cache, found, start = made.init_cache(2, 64, page=16, step=8, deterministic=False), list[Tensor](), 0
    spec = made.decoder.spec
    fresh = {n for n, s in variant.inputs.items() if len(s.shape) > 1 and str(s.shape[1]) in ("T", "TQ", "TK")}
    units = {**dict.fromkeys(fresh, 1), **{k.name: k.unit for k in spec.kept}}
    for count in STEPS:
        step: dict[str, Any] = {
            n: y[:, start // units[n] : (start + count) // units[n]] if n in units else y for n, y in x.items()
        }
        out = made.decode(cache, **step)
        found.append(out if isinstance(out, Tensor) else out[0])
        start += count
    return torch.cat(found, dim=1)


def early(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chains where there are none."""
    monkeypatch.setenv("SPARSEC_EARLY_LAUNCH", "1")
    monkeypatch.setattr(Target, "chains", property(lambda self: True))
    for module in (appends, kernels):
        monkeypatch.setattr(module, "build", lambda step, target, folder: Early(step))
    monkeypatch.setattr(Early, "waiting", [])


@pytest.mark.parametrize("name", DESIGNS)
def test_what_is_read_before_the_wait_is_what_would_be_read(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = decoded(DESIGNS[name], tmp_path)
    early(monkeypatch)
    assert torch.equal(decoded(DESIGNS[name], tmp_path), wanted)


@pytest.mark.parametrize("name", ["hsa", "rsa"])
def test_a_tensor_that_a_launch_before_writes_is_not_ready(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Were it read before the wait, the outputs would be others: the test above can fail."""
    wanted = decoded(DESIGNS[name], tmp_path)
    early(monkeypatch)
    own = chained.chained
    tables = {"cache_lengths", "cache_ends", "cache_blocks"}

    def careless(steps: Sequence[Step], before: set[str] | None) -> list[Step]:
        made = own(steps, before)
        everything = frozenset({t.name for s in steps for t in s.program.tensors} - tables)
        return [s if s.chain is None else replace(s, chain=replace(s.chain, ready=everything)) for s in made]

    monkeypatch.setattr(kernels, "chained", careless)
    with pytest.raises((AccessError, AssertionError)):
        assert torch.allclose(decoded(DESIGNS[name], tmp_path), wanted, atol=1e-3)


def shared(spec: AnySpec, found: Schedule, processors: int, batch: int) -> Schedule:
    """Two programs per list and per window, so that one launch reads both."""
    made = schedule(spec, found, processors, batch)
    softmax = isinstance(spec, TiledAttention | GatheredAttention) or (isinstance(spec, Selector) and spec.softmax)
    return replace(made, splits=2) if made.order == SHARED and softmax else made


@pytest.mark.parametrize("late", [True, False])
def test_a_window_is_read_before_chunks_are_chosen(late: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its keys are those that the head wrote, if the launch behind the head lets others start once it has waited."""
    monkeypatch.setattr(Compiled, "schedule", staticmethod(gpu_schedule))
    monkeypatch.setattr(space, "schedule", shared)
    design = preset("nsa", block=16, k=4, size=8, stride=4, window=24, rounding="storage")
    wanted = decoded(design, tmp_path, H=16, HKV=1)
    early(monkeypatch)
    own, names = chained.chained, set[str]()

    def noted(steps: Sequence[Step], before: set[str] | None) -> list[Step]:
        names.update(s.program.name for s in steps)
        made = own(steps, before)
        return made if late else [replace(s, chain=s.chain and replace(s.chain, late=False)) for s in made]

    monkeypatch.setattr(kernels, "chained", noted)
    found = decoded(design, tmp_path, H=16, HKV=1)
    assert "attend_out_2_parts_and_attend_out_3_parts" in names
    assert torch.equal(found, wanted) == late


def note(steps: list[Step], step: Step) -> launch.Bind:
    steps.append(step)
    return launch.Bind()


@pytest.mark.parametrize("name", ["hsa", "sse"])
def test_printed_programs_wait_once_and_read_what_is_ready_before(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The head waits before all; others let the next one start at once, and store nothing before they have waited."""
    monkeypatch.setenv("SPARSEC_EARLY_LAUNCH", "1")
    steps = list[Step]()
    for module in (appends, kernels):
        monkeypatch.setattr(module, "build", lambda step, target, folder: note(steps, step))
    made = compile(sparsec.preset(name, **({"raw": True} if name == "sse" else {})), "triton:sm_90", tmp_path)
    dims = {"B": 2, "TQ": 1, "TK": 4096, "H": 8, "HKV": 4, "D": 128, "DV": 128, "DR": 128, "DX": 64, "q_offset": 4095}
    made.decoder.built(made.decoder.new(2, 8192, deterministic=False), dims, "bfloat16", 1)
    early_loads = 0
    for number, step in enumerate(steps):
        chain, text = step.chain, emit(step.program, step.schedule, step.chain)
        assert chain is not None and text.count("gdc_wait()") == text.count("gdc_launch_dependents()") == 1
        before, after = text.split("gdc_wait()")
        loads = set(re.findall(r"tl\.load\(\s*(\w+)", before))
        first = number == 0 or step.program.name == "append_1_64"  # of which a step has one
        assert chain.head == first == ("gdc_launch_dependents()" in after)
        assert "tl.store" not in before and "tl.store" in after and loads <= chain.ready
        early_loads += len(loads)
    assert len(steps) > 1 and early_loads
