"""Where the time of a case goes: `python -m sparsec.benchmarks.kernels CASE … [--trials N [--sweep]]`, by a profiler.

Time of each GPU kernel of one call, on average over some; no peer runs and nothing is checked: `sparsec bench` does.
`--sweep` prints every schedule that tuning tried, which timed only those whose results agreed with the oracle's.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from sparsec.autotune.report import KernelReport
from sparsec.autotune.space import fields_of
from sparsec.autotune.trial import Trial
from sparsec.benchmarks.own import own
from sparsec.benchmarks.registry import cases_named
from sparsec.benchmarks.step import Call

CALLS = 5


def kernel_times(run: Call) -> list[tuple[str, float, float]]:
    """Per GPU kernel of a call its name, its launches and its milliseconds, the longest first."""
    for _ in range(2):
        run()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as found:
        for _ in range(CALLS):
            run()
        torch.cuda.synchronize()
    events = [e for e in found.key_averages() if "CUDA" in str(e.device_type)]
    times = [(str(e.key), e.count / CALLS, e.device_time_total / CALLS / 1e3) for e in events]
    return sorted((t for t in times if t[2] > 0), key=lambda t: -t[2])


def sweep(found: KernelReport) -> list[str]:
    """Every schedule that was tried of a kernel, the quickest first, as lines: what differs from the default."""
    base = fields_of(found.default)
    tried = sorted((t for t in found.trials if t.state != "lost"), key=lambda t: t.seconds or float("inf"))
    return [f"{found.kernel}: {len(tried)} schedules", *(f"  {_tried(trial, base)}" for trial in tried)]


def _tried(trial: Trial, base: Mapping[str, Any]) -> str:
    changed = {n: x for n, x in fields_of(trial.schedule).items() if x != base[n]}
    words = ", ".join(f"{name} = {value}" for name, value in changed.items()) or "the default"
    if trial.seconds is None:
        return f"{'–':>9}     {words}: {trial.why}, {trial.reason[:120]}"
    known = trial.built is not None and trial.built.registers is not None
    needs = f"; {trial.built.registers} registers, {trial.built.spills} spilled" if known and trial.built else ""
    return f"{trial.seconds * 1e3:9.3f} ms  {words}{needs}"


def main(words: Sequence[str]) -> int:
    """Print a block per case; 1 where there is no GPU, or a case failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cases", nargs="+", metavar="CASE")
    parser.add_argument("--trials", type=int, default=0, help="tune each kernel with so many trials first")
    parser.add_argument("--sweep", action="store_true", help="print every schedule that was tried")
    asked = parser.parse_args(words)
    if asked.sweep and not asked.trials:
        parser.error("--sweep prints what tuning tries: give --trials N too")
    cases, failed = cases_named(asked.cases), False
    if not torch.cuda.is_available():
        print("torch sees no GPU on this machine: nothing to time", file=sys.stderr)
        return 1
    for case in cases:
        try:
            run = own(case, case.inputs(), asked.trials)
            times = kernel_times(run)
        except Exception as error:  # one case must not stop the others
            print(f"{case.name}: {type(error).__name__}: {error}"[:300], file=sys.stderr)
            failed = True
            continue
        print(f"{case.name}: {sum(t[2] for t in times):.3f} ms in kernels")
        for name, launches, ms in times:
            print(f"  {name[:70]:70} {launches:4.0f} x {ms:9.3f} ms", flush=True)
        for kernel in run.tuning.kernels if asked.sweep and run.tuning else ():
            print("\n".join(sweep(kernel)), flush=True)
        torch.cuda.empty_cache()
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
