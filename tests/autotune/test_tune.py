"""Tuning end to end: real kernels through TVM, records that are used, folders that cannot be written."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from threading import Timer
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor

import sparsec
from sparsec.autotune.admit import Admission
from sparsec.autotune.cases import cases
from sparsec.autotune.jobs import Job, perform, read_probe
from sparsec.autotune.progress import Progress
from sparsec.autotune.search import Budget, Search
from sparsec.autotune.space import Space
from sparsec.autotune.study import Study
from sparsec.autotune.subject import KernelSubject
from sparsec.autotune.trial import Built, Rejection, TuneError
from sparsec.ir.variant import Variant
from sparsec.lower import registry
from sparsec.lower.lowered import Lowered
from sparsec.oracle.error import check
from sparsec.oracle.truth import oracle
from sparsec.oracle.values import OracleError
from sparsec.plan.specs import Spec, TiledAttention
from sparsec.runtime.compiled import Compiled, compile
from sparsec.scalar.evaluate import evaluate
from sparsec.scalar.expr import var
from sparsec.tile.schedule import Schedule

Inputs = dict[str, Any]


def declared() -> tuple[Variant, Inputs]:
    variant = sparsec.preset("streaming", window=32, sinks=4)
    return variant, sparsec.inputs(variant, T=300, H=2, HKV=1, D=32, DV=32)


def kernel_schedule(compiled: Compiled, inputs: Inputs) -> Schedule:
    dims, dtype = compiled.bind(inputs)
    return compiled.schedule(compiled.plan(dims, dtype).kernels[0], dims)


def rightly(compiled: Compiled, inputs: Inputs) -> bool:
    out, truth = compiled(**inputs), oracle(compiled.variant, inputs, form="vector")
    assert isinstance(out, Tensor) and isinstance(truth, Tensor)
    return bool(check(out, truth, "float32"))


def test_tuning_finds_a_schedule_that_is_used_from_then_on(tmp_path: Path) -> None:
    variant, inputs = declared()
    seen: list[Progress] = []
    report = compile(variant, "cpu", tmp_path).tune(inputs, trials=4, workers=2, progress=seen.append)
    (found,) = report.kernels
    assert len([t for t in found.trials if t.state != "lost"]) == 4 and [p.done for p in seen] == [1, 2, 3, 4]
    assert found.trials[0].schedule == found.default and found.trials[0].state == "timed"
    assert report.summary == "0 of 4 rejected" and report.notes == () and not found.stopped
    assert found.time_s is not None and found.time_s > 0 and found.speedup >= 1.0
    assert json.loads(json.dumps(report.to_dict()))["kernels"][0]["trials"][0]["state"] == "timed"
    again = compile(variant, "cpu", tmp_path)
    assert kernel_schedule(again, inputs) == found.schedule
    assert rightly(again, inputs)
    with sqlite3.connect(tmp_path / "trials.db") as db:
        assert [row[0] for row in db.execute("select state from trials")] == ["COMPLETE"] * 4
    second = again.tune(inputs, trials=4, workers=1)
    assert second.kernels[0].trials == found.trials


class AtOnce:
    """Compiles nothing: the interpreter needs none."""

    batch = 2

    def __init__(self) -> None:
        self.numbers: list[int] = []

    def submit(self, number: int, schedule: Schedule) -> None:
        self.numbers.append(number)

    def finished(self, deadline: float) -> Sequence[tuple[int, Built | Rejection]]:
        numbers, self.numbers = self.numbers, []
        return [(n, Built()) for n in numbers]

    def cancel(self) -> None:
        self.numbers = []


def test_a_schedule_whose_program_skips_a_tile_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    variant = sparsec.preset("streaming", window=24, sinks=4)
    inputs = sparsec.inputs(variant, T=75, H=1, HKV=1, D=16, DV=16)
    right = registry.lower_kernel

    def skipping(spec: Spec, schedule: Schedule) -> Lowered:
        if schedule.block == 16:
            assert isinstance(spec, TiledAttention) and spec.pieces[0].where is not None
            where = spec.pieces[0].where & ((var("j") < 32) | (var("j") >= 48))
            spec = replace(spec, pieces=(replace(spec.pieces[0], where=where),))
        return right(spec, schedule)

    monkeypatch.setattr("sparsec.runtime.kernel.lower_kernel", skipping)
    compiled = compile(variant, "interpreter", tmp_path)
    plan = compiled.plan(*compiled.bind(inputs))
    space = Space(Schedule(rows=16, block=32, split_dims=False), {"rows": (16, 32), "block": (16, 32)})
    made = cases(compiled, plan, inputs, None, plan.kernels[0], space)

    def clock(run: object) -> float:
        return 1.0

    subject = KernelSubject(plan.kernels[0], space, compiled.target, tmp_path, made, clock, lambda *_: None)
    found = Search(subject, Study(None, "k", space), AtOnce(), Budget(4), None).run()
    assert {t.schedule.block: t.why for t in found.trials} == {16: "wrong result", 32: ""}
    assert all("out is outside the bounds" in t.reason for t in found.trials if t.schedule.block == 16)
    assert found.schedule is not None and found.schedule.block == 32


def test_a_worker_runs_what_it_built_on_the_small_case(tmp_path: Path) -> None:
    variant = sparsec.preset("streaming", window=24, sinks=4)
    inputs = sparsec.inputs(variant, T=40, H=1, HKV=1, D=16, DV=16)
    compiled = compile(variant, "interpreter", tmp_path)
    dims, dtype = compiled.bind(inputs)
    kernel = compiled.plan(dims, dtype).kernels[0]
    probe = tmp_path / "probe.pt"
    torch.save({**inputs, "out": torch.full((1, 40, 1, 16), float("nan"))}, probe)
    params = {name: int(evaluate(value, dims)) for name, value in kernel.params}
    schedule = Schedule(rows=16, block=16, split_dims=False)
    job = Job(kernel.spec, schedule, compiled.target, tmp_path, params, {}, probe)
    assert isinstance(perform(job), Built)
    assert bool(read_probe(probe)["out"].isfinite().all())


@pytest.fixture
def blocked(tmp_path: Path) -> Path:
    """A cache folder that cannot be made, even by root: there is a file in its place."""
    (tmp_path / "file").write_text("in the way")
    return tmp_path / "file" / "cache"


def test_without_a_writable_cache_everything_runs_and_nothing_is_kept(blocked: Path) -> None:
    variant, inputs = declared()
    with pytest.warns(UserWarning, match="cannot be written") as warned:
        compiled = compile(variant, "cpu", blocked)
        compile(variant, "cpu", blocked)
    assert len(warned) == 1, "once per folder"
    assert rightly(compiled, inputs)
    report = compiled.tune(inputs, trials=2, workers=1)
    assert report.database is None and "not kept" in report.notes[0] and str(blocked) in str(report)
    assert kernel_schedule(compiled, inputs) == report.kernels[0].schedule
    assert not blocked.exists()


def test_a_record_of_a_read_only_folder_is_still_read(tmp_path: Path) -> None:
    from sparsec.runtime.records import Record, Records, bucket, record_key

    variant, inputs = declared()
    compiled = compile(variant, "interpreter", tmp_path)
    dims, dtype = compiled.bind(inputs)
    kernel = compiled.plan(dims, dtype).kernels[0]
    other = Schedule(rows=8, block=16, split_dims=False)
    key = record_key(kernel.spec, compiled.target, bucket(compiled.lengths.longest(dims)))
    Records(tmp_path).write(key, Record(kernel.name, other, 1.0, 2.0, 3, "tools"))
    compiled.cache_dir = Path("/nonexistent")
    assert kernel_schedule(compiled, inputs) == other


def test_what_cannot_be_tuned_is_said() -> None:
    variant, inputs = declared()
    with pytest.raises(TuneError, match="nothing to tune"):
        compile(variant, "interpreter").tune(inputs)
    with pytest.raises(TuneError, match="attend_out"):
        compile(variant, "cpu").tune(inputs, kernels=["attend_it"])
    with pytest.raises(TuneError, match="trials = 0"):
        compile(variant, "cpu").tune(inputs, trials=0)


def test_one_tuner_at_a_time(tmp_path: Path) -> None:
    from sparsec.autotune.lock import alone

    with alone(tmp_path, "k"), pytest.raises(TuneError, match="another process"), alone(tmp_path, "k"):
        pass
    with alone(tmp_path, "k"):
        pass


def test_a_kernel_that_another_process_tunes_is_waited_for(tmp_path: Path) -> None:
    from sparsec.autotune.lock import alone

    with ExitStack() as held:
        held.enter_context(alone(tmp_path, "k"))
        free = Timer(0.1, held.close)
        free.start()
        with pytest.warns(UserWarning, match="tuning k; waiting up to 20 s"), alone(tmp_path, "k", 20.0):
            free.join()
    with alone(tmp_path, "k"), pytest.warns(UserWarning), pytest.raises(TuneError), alone(tmp_path, "k", 0.05):
        pass


@pytest.mark.parametrize(("held", "done"), [("a", "bca"), ("", "abc"), ("A", "bc"), ("ABC", "")])
def test_the_other_kernels_are_tuned_meanwhile(held: str, done: str) -> None:
    """Kernels of capitals stay locked; with others tuned the report says so, else the tuning is refused."""
    from sparsec.autotune.lock import Locked
    from sparsec.autotune.tuner import Tuning

    class Busy(Tuning):
        def __init__(self) -> None:
            pass

        def kernel(self, kernel: Any, pool: Any, deadline: float | None, wait: bool = False) -> Any:
            if kernel.name.upper() in held or (kernel.name in held and not wait):
                raise Locked(f"{kernel.name} is locked")
            return SimpleNamespace(kernel=kernel.name, stopped="")

    kernels: Any = [SimpleNamespace(name=name) for name in "abc"]
    notes, pool = list[str](), cast("Any", None)
    if not done:
        with pytest.raises(TuneError, match="a is locked"):
            Busy().each(kernels, pool, lambda left: None, notes)
        return
    assert "".join(r.kernel for r in Busy().each(kernels, pool, lambda left: None, notes)) == done
    assert notes == [f"{name.lower()} is locked" for name in held if name.isupper()]


def test_a_damaged_triton_source_is_written_anew(tmp_path: Path) -> None:
    from sparsec.backends.triton.build import load

    source = "import triton\n\n\n@triton.jit\ndef nothing(x):\n    pass\n"
    load(source, "nothing", tmp_path)
    (file,) = tmp_path.glob("nothing_*.py")
    for damage in (source[:-20].encode(), b"\xff\xfe"):
        file.write_bytes(damage)
        load(source, "nothing", tmp_path)
        assert file.read_text() == source


def test_sources_have_headings() -> None:
    variant, inputs = declared()
    compiled = compile(variant, "triton:sm_90")
    dims, _ = compiled.bind(inputs)
    text = compiled.source(dims, "bfloat16")
    assert text.startswith("# attend_out: attend_out for triton:sm_90\n# Schedule(") and "@triton.jit" in text


def test_what_the_oracle_cannot_judge_keeps_its_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def judge(self: Admission, built: object) -> None:
        raise OracleError("no meaning yet")

    monkeypatch.setattr(Admission, "judge", judge)
    variant, inputs = declared()
    (found,) = compile(variant, "cpu", tmp_path).tune(inputs, trials=2, workers=1).kernels
    assert found.schedule == found.default and "no meaning yet" in found.stopped and found.time_s is None


def test_the_tuner_of_a_gpu_needs_no_tvm() -> None:
    modules = ("tuner", "study", "subject", "jobs", "worker", "progress", "report")
    code = "".join(f"import sparsec.autotune.{name}\n" for name in modules)
    code += "import sparsec.backends.triton.warm, sys\nassert 'tvm' not in sys.modules"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p or os.getcwd() for p in sys.path)}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment, timeout=120)
