"""Runs whole cases in a process of its own: ``python -m sparsec.testing.whole.worker TARGET``, cases as JSON on stdin.

One line of JSON per case as it ends, so that a crash names its case: the first one without a line.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sparsec.testing.triton.pace import keep_pace
from sparsec.testing.whole.case import WholeCase


def run_apart(cases: Sequence[WholeCase], target: str, env: Mapping[str, str], timeout: float) -> dict[str, list[str]]:
    """What is wrong, by case; a case at which the process ended says so, and those after it that they did not run."""
    command = [sys.executable, "-m", "sparsec.testing.whole.worker", target]
    root = str(Path(__file__).resolve().parents[3])
    path = os.pathsep.join(p for p in (root, os.environ.get("PYTHONPATH")) if p)
    done = subprocess.run(
        command,
        input=json.dumps([asdict(case) for case in cases]),
        env={**os.environ, **env, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    found: dict[str, list[str]] = dict(json.loads(line) for line in done.stdout.splitlines())
    missing = [case.name for case in cases if case.name not in found]
    if missing:
        found[missing[0]] = [f"the process ended here with {done.returncode}: {done.stderr[-2000:]}"]
        found |= {name: ["did not run"] for name in missing[1:]}
    return {name: wrong for name, wrong in found.items() if wrong}


def read(values: dict[str, Any]) -> WholeCase:
    """A case back from JSON, whose lists are tuples here."""
    given: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
    return WholeCase(**given)


def main(target: str) -> None:
    """Run every case of standard input."""
    keep_pace()
    out, sys.stdout = sys.stdout, sys.stderr
    for values in json.load(sys.stdin):
        case = read(values)
        try:
            wrong = case.wrong(target)
        except Exception as error:
            wrong = [f"{type(error).__name__}: {error}"]
        print(json.dumps([case.name, wrong]), file=out, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
