"""Cases in processes of their own: a kernel that breaks the GPU's context, or never ends, stops no other case."""

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from threading import Event, Timer
from typing import Any

from sparsec.benchmarks.row import read_json, write_json

Report = Callable[[str], None]
Keep = Callable[[list[dict[str, Any]]], None]


def rows_apart(
    names: Sequence[str],
    options: Sequence[str],
    limit: float,
    report: Report,
    keep: Keep = lambda rows: None,
    begun: Mapping[str, Any] | None = None,
) -> list[dict[str, Any]]:
    """The rows, as JSON values, of `sparsec bench NAME` for each name.

    Args:
        limit: seconds after which a case is given up; 0 for no limit. What it had by then is kept.
        report: told each line that a process prints on its way.
        keep: given all rows so far after each case, so that a run that is cut short leaves what it had.
        begun: by name, rows that go on from where they ended.
    """
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            path = Path(folder) / f"{name}.json"
            if begun and name in begun:
                write_json([begun[name]], path)
            resume = ["--resume"] if path.exists() else []
            run([name, *options, *resume, f"--out={path}"], limit, report)
            rows += read_json(path)
            keep(rows)
    return rows


def run(words: Sequence[str], limit: float, report: Report) -> None:
    """Run one process to its end or to the limit; it and its workers are a group of their own, and end together."""
    command, env = [sys.executable, "-m", "sparsec", "bench", *words], {**os.environ, "PYTHONUNBUFFERED": "1"}
    with tempfile.TemporaryFile("w+") as errors:
        child = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, text=True, env=env, start_new_session=True
        )
        late = Event()
        timer = Timer(limit or 1e6, _end, [child, late])
        timer.daemon = True
        timer.start()
        try:
            _relay(child, report)
        finally:
            timer.cancel()
            _end(child)
        errors.seek(0)
        last = (errors.read().strip().splitlines() or [""])[-1]
    if late.is_set():
        report(f"{words[0]}: given up after {limit:g} s")
    elif child.returncode not in (0, 1):
        report(f"{words[0]}: the process ended with {child.returncode}: {last}")


def _end(child: "subprocess.Popen[str]", late: Event | None = None) -> None:
    """Kill a process that still runs, and its workers."""
    if child.poll() is None:
        if late is not None:
            late.set()
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()


def _relay(child: "subprocess.Popen[str]", report: Report) -> None:
    """Report the lines before the first empty one, after which the process's own table follows."""
    assert child.stdout is not None
    on_the_way = True
    for line in child.stdout:
        on_the_way = on_the_way and bool(line.strip())
        if on_the_way:
            report(line.rstrip("\n"))
    child.wait()
