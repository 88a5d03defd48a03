"""Kernels with one mistake each: the check by which the tuner admits kernels refuses every one of them.

In bfloat16, whose bounds are the widest. Only one mistake may pass, where it is none: a key past the last that another
mask hides anyway.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import pytest

from sparsec.autotune.admit import Admission
from sparsec.autotune.cases import Case
from sparsec.ir.lengths import lengths
from sparsec.lower.lowered import Lowered
from sparsec.lower.registry import lower_kernel
from sparsec.plan.grad_specs import AnySpec
from sparsec.plan.plan import Kernel
from sparsec.plan.specs import Combine, GatheredAttention, Selector, Summarise, TiledAttention
from sparsec.runtime.compiled import compile
from sparsec.runtime.kernel import BuiltKernel
from sparsec.runtime.target import INTERPRETER
from sparsec.testing.inputs.styles import STYLES
from sparsec.testing.inputs.variants import small
from sparsec.testing.mistakes.mutants import Change, mutated
from sparsec.testing.mistakes.named import MISTAKES, accumulator_in_half_precision, last_tile_skipped
from sparsec.testing.whole.case import WholeCase
from sparsec.tile.printer import to_text
from sparsec.tile.schedule import Schedule
from sparsec.tile.verify import verify

LENGTH = 99
SUBJECTS: dict[str, tuple[type[AnySpec], ...]] = {
    "full": (TiledAttention,),
    "open": (TiledAttention,),
    "alibi-lse": (TiledAttention,),
    "msa-window": (TiledAttention,),
    "nsa-selected": (GatheredAttention,),
    "nsa": (Summarise, Selector, Combine),
    "moba": (Selector, GatheredAttention),
    "infllm2-free": (Selector,),
    "hsa": (Selector, GatheredAttention),
    "open-chunks": (Selector, GatheredAttention),
    "head-weights": (GatheredAttention,),
    "joined": (Combine,),
    "mixed": (Selector,),
}
"""Variant -> which of its kernels mistakes are made in."""

OPEN = ("open", "msa-window", "open-chunks")
"""The variants in which only the length hides what lies past the last key."""


@dataclass(frozen=True)
class Subject:
    """A kernel of a variant under a style of schedule."""

    variant: str
    kernel: Kernel
    style: str

    def __str__(self) -> str:
        return f"{self.variant}-{self.kernel.name}-{self.style}"

    @property
    def schedule(self) -> Schedule:
        """The schedule of this style."""
        return STYLES[self.style](self.kernel.spec)


def whole(variant: str, numbers: str) -> WholeCase:
    """The call on which a variant's kernels are judged."""
    return WholeCase(variant, (LENGTH, LENGTH, None), (2, 1), (32, 32), "bfloat16", numbers=numbers)


def subjects(variant: str) -> Iterator[Subject]:
    """The kernels of a variant that mistakes are made in, under the schedules of a GPU and their opposite."""
    compiled = compile(small(variant), target="interpreter")
    dims, dtype = compiled.bind(whole(variant, "normal").inputs())
    for kernel in compiled.plan(dims, dtype).kernels:
        if type(kernel.spec) in SUBJECTS[variant]:
            yield from (Subject(variant, kernel, style) for style in ("gpu", "flipped"))


@cache
def cases(variant: str) -> list[Case]:
    """What kernels are judged on: ordinary numbers, and where padding may show scores far below that of padding."""
    compiled, found = compile(small(variant), target="interpreter"), []
    for numbers in ("normal", "low") if variant in OPEN else ("normal",):
        inputs = whole(variant, numbers).inputs()
        dims, dtype = compiled.bind(inputs)
        buffers = compiled.run_plan(compiled.plan(dims, dtype), inputs, dims)
        found.append(Case(dims, buffers, False, lengths(compiled.variant)))
    return found


def mistakes(spec: AnySpec, schedule: Schedule) -> Iterator[tuple[str, Lowered]]:
    """Every wrong program of a kernel that differs from the right one."""
    right = lower_kernel(spec, schedule)
    same = mutated(right, lambda node, args: None)
    tried: list[tuple[str, Change, str | None]] = [(c.__name__, c, None) for c in MISTAKES[type(spec)]]
    if lse := getattr(spec, "lse", None):
        tried.append(("stale_lse", last_tile_skipped, lse))
    for name, change, only in tried:
        wrong = mutated(right, change, only)
        if text_of(wrong) != text_of(same):
            yield name, wrong


def text_of(lowered: Lowered) -> list[str]:
    """The printed programs, which must be legal ones."""
    for step in lowered.steps:
        verify(step.program)
    return [to_text(step.program) for step in lowered.steps]


EVERY = [subject for variant in SUBJECTS for subject in subjects(variant)]


@pytest.mark.parametrize("subject", EVERY, ids=str)
def test_every_mistake_is_refused(subject: Subject, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    kernel, schedule = subject.kernel, subject.schedule
    judge = Admission(kernel, cases(subject.variant)).judge
    build = partial(BuiltKernel, kernel, schedule, INTERPRETER, tmp_path)
    assert judge(build()) is None
    admitted, made = set(), list(mistakes(kernel.spec, schedule))
    for name, wrong in made:
        monkeypatch.setattr("sparsec.runtime.kernel.lower_kernel", lambda spec, schedule, wrong=wrong: wrong)
        if judge(build()) is None:
            admitted.add(name)
    assert made, "nothing was mutated"
    assert admitted <= ({"boundary_column_unmasked"} if subject.variant not in OPEN else set())


def test_every_mistake_is_made_somewhere() -> None:
    made = {(type(s.kernel.spec), name) for s in EVERY for name, _ in mistakes(s.kernel.spec, s.schedule)}
    assert {(spec, change.__name__) for spec, changes in MISTAKES.items() for change in changes} <= made
    assert {TiledAttention, GatheredAttention} <= {spec for spec, name in made if name == "stale_lse"}


def test_accumulators_keep_fp32(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    case = WholeCase("open", (531, 531, None), (1, 1), (32, 32), "bfloat16")
    compiled, inputs = compile(small("open"), target="interpreter"), case.inputs()
    dims, dtype = compiled.bind(inputs)
    plan = compiled.plan(dims, dtype)
    (kernel,) = plan.kernels
    made = Case(dims, compiled.run_plan(plan, inputs, dims), False, lengths(compiled.variant))
    judge = Admission(kernel, [made]).judge
    schedule = STYLES["gpu"](kernel.spec)
    wrong = mutated(lower_kernel(kernel.spec, schedule), accumulator_in_half_precision)
    assert judge(BuiltKernel(kernel, schedule, INTERPRETER, tmp_path)) is None
    monkeypatch.setattr("sparsec.runtime.kernel.lower_kernel", lambda spec, schedule: wrong)
    assert judge(BuiltKernel(kernel, schedule, INTERPRETER, tmp_path)) is not None
