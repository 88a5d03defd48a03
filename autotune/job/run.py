"""The main job on one variant: show, tune, check against the oracle, time beside the rivals, and leave a folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from sparsec.autotune.job import heat, rivals
from sparsec.autotune.job.footprint import peak_bytes
from sparsec.autotune.job.given import Given, load
from sparsec.autotune.job.judge import judged
from sparsec.autotune.job.machine import cores, load_per_core, machine
from sparsec.autotune.job.outcome import Contender, KernelTime, Outcome, Picture, keep
from sparsec.autotune.job.page import page
from sparsec.autotune.job.race import processor_seconds, race
from sparsec.autotune.job.screen import Screen
from sparsec.autotune.job.sources import save_database, save_kernels, save_texts
from sparsec.autotune.report import Report
from sparsec.autotune.space import fields_of
from sparsec.autotune.tuner import tune
from sparsec.ir.error import InputError
from sparsec.ir.variant import Variant
from sparsec.lower.registry import default
from sparsec.oracle.error import BOUNDS
from sparsec.oracle.mass import kept_mass
from sparsec.oracle.truth import oracle
from sparsec.oracle.values import OracleError
from sparsec.passes.observers import Diffs
from sparsec.passes.pipeline import PIPELINE
from sparsec.passes.pipeline import run as run_passes
from sparsec.plan.plan import Plan
from sparsec.runtime.compiled import Compiled, compile
from sparsec.runtime.explain import Explanation
from sparsec.runtime.target import available, find

DTYPES = {"cuda": torch.float16, "cpu": torch.float32}
DEFAULT, TUNED = "sparsec, default schedules", "sparsec, tuned"
MOST_PICTURED = 4096


@dataclass(frozen=True, slots=True)
class Limits:
    """What tuning may take: configurations per kernel, and seconds for all kernels of a variant; None for no limit.

    Attributes:
        kernels: the kernels of the plan that are tuned; () for all.
    """

    trials: int = 200
    seconds: float | None = None
    kernels: tuple[str, ...] = ()


def run_job(
    variant: Variant,
    inputs: Path,
    folder: Path,
    *,
    target: str = "auto",
    dtype: str = "",
    limits: Limits = Limits(),
    command: str = "",
    screen: Screen | None = None,
    dims: Mapping[str, int] | None = None,
) -> Outcome:
    """Tune a variant on the arrays of an ``.npz`` file and write kernels, results and a report into a folder.

    The dtype is float16 on a GPU and float32 on a CPU unless another is named. Results of other variants that the
    folder already holds stay in its report. ``dims`` are sizes that the arrays must have.

    Raises:
        InputError, TargetError, TuneError: inputs, a target or a tuning that cannot be.
        OSError: a file that cannot be read, or a folder that cannot be written.
    """
    found = find(target)
    available(found)
    kind = getattr(torch, dtype) if dtype else DTYPES[found.device]
    given = load(inputs, variant, found.device, kind)
    job = Job(variant, compile(variant, found), given, screen or Screen(), command or variant.name)
    _check_dims(dims or {}, job.dims, inputs)
    folder.mkdir(parents=True, exist_ok=True)
    outcome = job.outcome(folder, limits)
    every = keep(folder, outcome)
    (folder / "report.html").write_text(page(every, folder))
    job.screen.table(every, outcome)
    job.screen.files(folder, every, outcome.key)
    return outcome


def _check_dims(asked: Mapping[str, int], found: Mapping[str, int], path: Path) -> None:
    for name, size in asked.items():
        if found.get(name) != size:
            have = " ".join(f"{n}={d}" for n, d in found.items() if n != "q_offset")
            raise InputError(name, f"{name}={size}", f"the arrays of {path.name} have {have}", f"leave {name} out")


class Job:
    """One run: what its steps share."""

    def __init__(self, variant: Variant, compiled: Compiled, given: Given, screen: Screen, command: str) -> None:
        self.variant, self.compiled, self.given, self.screen, self.command = variant, compiled, given, screen, command
        self.inputs: Mapping[str, Tensor] = given.tensors
        self.dims, self.dtype = compiled.bind(self.inputs)
        self.device = compiled.target.device
        self.plan: Plan = compiled.plan(self.dims, self.dtype)
        self.plain = Compiled(variant, compiled.target)
        self.plain.schedules = {k.name: default(k.spec, compiled.target.name) for k in self.plan.kernels}
        self.load = load_per_core()
        self.key = f"{variant.name}-{variant.digest[:6]}"

    def outcome(self, folder: Path, limits: Limits) -> Outcome:
        """Every step in turn."""
        diffs = Diffs()
        run_passes(self.variant, PIPELINE, (diffs,))
        notes = [*self.given.notes, *self.plan.notes]
        self.screen.declaration(self.command, self.variant, self.compiled, self.dims, self.dtype, self.given.notes)
        self.screen.passes(diffs.found, self.compiled.graph)
        self.screen.plan(self.plan)
        report = self._tune(limits)
        truths, pictures = self._truths()
        verdict = judged(self.compiled, self.plan, self.inputs, self.dims, truths)
        contenders = self._contenders(truths[0])
        explained = self.compiled.explain(self.dims, self.dtype)
        here = folder / self.key
        save_texts(here, self.variant, self.compiled.graph, self.plan)
        save_kernels(here / "kernels", {"default": self.plain, "tuned": self.compiled}, self.plan, self.dims)
        save_database(report.database, folder)
        return Outcome(
            key=self.key, name=self.variant.name, command=self.command, target=self.compiled.target.name,
            machine=machine(self.device), load=self.load, dtype=self.dtype, dims=dict(self.dims),
            declaration=self.variant.text(), passes=diffs.found, plan=self.plan.text(), notes=notes,
            contenders=contenders, error=verdict.tensor, tile=verdict.tile, bounds=BOUNDS[self.dtype]["o"],
            right=verdict.ok, mass=self._mass(), predicted_s=explained.seconds, processor_s=self._processor(),
            predicted_peak=explained.peak,
            kernels=self._kernels(explained), tuning=report.to_dict(), pictures=pictures,
        )  # fmt: skip

    def _tune(self, limits: Limits) -> Report:
        self.screen.heading("tuning", "every candidate is checked against the oracle before it is timed")
        with self.screen.bar() as show:
            report = tune(
                self.compiled,
                self.inputs,
                trials=limits.trials,
                seconds=limits.seconds,
                progress=show,
                kernels=limits.kernels or None,
            )
        self.screen.tuned(report)
        return report

    def _truths(self) -> tuple[tuple[Tensor, ...], list[Picture]]:
        """The outputs in fp64, and pictures of what was read."""
        self.screen.step("the truth: the oracle in fp64")
        pictured = max(self.dims.values()) <= MOST_PICTURED
        if not pictured:
            result = oracle(self.variant, self.inputs, form="vector")
            return ((result,) if isinstance(result, Tensor) else result), []
        result, values = oracle(self.variant, self.inputs, form="vector", return_all=True)
        truths = (result,) if isinstance(result, Tensor) else result
        return truths, heat.pictures(self.variant, values, self.dims)

    def _first(self, compiled: Compiled) -> Tensor:
        result = compiled(None, **self.inputs)
        return result if isinstance(result, Tensor) else result[0]

    def _contenders(self, truth: Tensor) -> list[Contender]:
        """Everything timed in turn; of several forms of one rival the fastest counts."""
        self.screen.step("the rivals: dense attention and FlexAttention")
        found = [
            rivals.dense(self.variant, self.inputs, self.dims),
            rivals.flex(self.plan, self.inputs, self.dims, truth),
            rivals.Rival(DEFAULT, {"": lambda: self._first(self.plain)}),
            rivals.Rival(TUNED, {"": lambda: self._first(self.compiled)}),
        ]
        runs = {(rival.name, form): run for rival in found for form, run in rival.runs.items()}
        self.screen.step("the clock: all of them in turn")
        taken = race(runs, self.device)
        return [_contender(rival, taken, self.device) for rival in found]

    def _processor(self) -> float | None:
        return processor_seconds(lambda: self._first(self.compiled)) / cores() if self.device == "cpu" else None

    def _mass(self) -> dict[str, float]:
        self.screen.step("the dense attention mass that was kept")
        try:
            mass = kept_mass(self.variant, self.inputs)
        except OracleError:
            return {}
        head, least = mass.worst_head
        return {"mean": mass.mean, "p5": mass.p5, "worst_head": head, "worst": least}

    def _kernels(self, explained: Explanation) -> list[KernelTime]:
        """Each kernel alone, default and tuned in turn."""
        buffers, found = self.compiled.run_plan(self.plan, self.inputs, self.dims), []
        for kernel, said in zip(self.plan.kernels, explained.kernels, strict=True):
            both = {"default": self.plain, "tuned": self.compiled}
            runs = {n: c.built(kernel, self.dims).prepared(buffers, self.dims)[0] for n, c in both.items()}
            taken = race(runs, self.device)
            own, base = (fields_of(c.schedule(kernel, self.dims)) for c in (self.compiled, self.plain))
            changed = {n: v for n, v in own.items() if v != base[n]}
            found.append(
                KernelTime(
                    kernel.name, said.kind, taken["default"], taken["tuned"], said.seconds, said.floor_s, changed
                )
            )
        return found


def _contender(rival: rivals.Rival, taken: Mapping[tuple[str, str], float], device: str) -> Contender:
    """The fastest form of a rival, with the bytes that it holds."""
    forms = {form: taken[rival.name, form] for form in rival.runs}
    if not forms:
        return Contender(rival.name, reason=rival.reason)
    best = min(forms, key=lambda form: forms[form])
    return Contender(rival.name, best, forms[best], peak_bytes(rival.runs[best], device))
