"""Time the peers alone: `python -m sparsec.benchmarks window selected_t8192_random --json peers.json`."""

import argparse
import json
import time
from dataclasses import asdict
from pathlib import Path

import torch

from sparsec.benchmarks.forms import judges_of, time_forms
from sparsec.benchmarks.hardware import hardware
from sparsec.benchmarks.registry import CASES, cases_named, cases_on


def main() -> None:
    """Check and time every form of the named cases, or of all cases that this machine can run."""
    here = "cuda" if torch.cuda.is_available() else "cpu"
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cases", nargs="*", metavar="case", help=f"one of {', '.join(CASES)}; default: all for {here}")
    parser.add_argument("--skip", nargs="*", default=[], help="forms to leave out, such as flex/tuned")
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    arguments = parser.parse_args()
    cases = cases_named(arguments.cases) if arguments.cases else cases_on(here)
    rows: dict[str, object] = {}
    for case in cases:
        started = time.perf_counter()
        with torch.no_grad():
            inputs = case.inputs()
            times = time_forms(case, inputs, judges_of(case, inputs), arguments.skip)
        seconds = round(time.perf_counter() - started, 1)
        rows[case.name] = {"forms": {name: asdict(t) for name, t in times.items()}, "seconds": seconds}
        if arguments.json:
            arguments.json.write_text(json.dumps({"hardware": hardware(case.device), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
