"""Where the time of a case goes, by torch's profiler: `python -m sparsec.benchmarks.kernels CASE … [--trials N]`.

Time of each GPU kernel of one call, on average over some; no peer runs and nothing is checked: `sparsec bench` does.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import torch
from torch.profiler import ProfilerActivity, profile

from sparsec.benchmarks.cases import Case
from sparsec.benchmarks.own import own
from sparsec.benchmarks.registry import cases_named

CALLS = 5


def kernel_times(case: Case, trials: int) -> list[tuple[str, float, float]]:
    """Per GPU kernel of a call its name, its launches and its milliseconds, the longest first."""
    run = own(case, case.inputs(), trials)
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


def main(words: Sequence[str]) -> int:
    """Print a block per case; 1 where there is no GPU, or a case failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cases", nargs="+", metavar="CASE")
    parser.add_argument("--trials", type=int, default=0, help="tune each kernel with so many trials first")
    asked = parser.parse_args(words)
    cases, failed = cases_named(asked.cases), False
    if not torch.cuda.is_available():
        print("torch sees no GPU on this machine: nothing to time", file=sys.stderr)
        return 1
    for case in cases:
        try:
            times = kernel_times(case, asked.trials)
        except Exception as error:  # one case must not stop the others
            print(f"{case.name}: {type(error).__name__}: {error}"[:300], file=sys.stderr)
            failed = True
            continue
        print(f"{case.name}: {sum(t[2] for t in times):.3f} ms in kernels")
        for name, launches, ms in times:
            print(f"  {name[:70]:70} {launches:4.0f} x {ms:9.3f} ms", flush=True)
        torch.cuda.empty_cache()
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
