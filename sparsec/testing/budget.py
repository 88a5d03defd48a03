"""A time limit and a memory for a run of tests: ``pytest -p sparsec.testing.budget --budget 500 --done done.jsonl``.

Tests whose turn comes after so many seconds are skipped, and say so. Each outcome is a line of the file as soon as it
is known, so a run that is cut off loses none; tests that passed by the file are not run again.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

LATE, BEFORE = "not run: the time is over", "passed before"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds --budget and --done."""
    parser.addoption("--budget", type=float, default=0.0, metavar="SECONDS", help="skip tests from then on; 0: none")
    parser.addoption(
        "--done", type=Path, metavar="FILE", help="outcomes as lines of JSON; what passed is not run again"
    )


def pytest_configure(config: pytest.Config) -> None:
    """The time begins."""
    config.pluginmanager.register(Budget(config), "sparsec-budget")


class Budget:
    """One run of tests, or one worker of it; the process that workers report to writes the file."""

    def __init__(self, config: pytest.Config) -> None:
        seconds: float = config.getoption("--budget")
        self.end = time.monotonic() + seconds if seconds else float("inf")
        self.file: Path | None = config.getoption("--done")
        self.writes = self.file is not None and not hasattr(config, "workerinput")
        self.passed = passed(self.file) if self.file else set[str]()

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        """Skips what passed before, and all that comes too late."""
        if item.nodeid in self.passed:
            pytest.skip(BEFORE)
        if time.monotonic() > self.end:
            pytest.skip(LATE)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Keeps what became of a test."""
        why = _why(report)
        if not self.writes or LATE in why or BEFORE in why or (report.when != "call" and report.passed):
            return
        assert self.file is not None
        line = {"test": report.nodeid, "outcome": report.outcome, "seconds": round(report.duration, 2), "why": why}
        with self.file.open("a") as file:
            file.write(json.dumps(line) + "\n")


def passed(file: Path) -> set[str]:
    """The tests whose last outcome in a file is that they passed; a line that was cut off counts as none."""
    last: dict[str, str] = {}
    for line in file.read_text().splitlines() if file.exists() else ():
        try:
            found = json.loads(line)
        except ValueError:
            continue
        last[found["test"]] = found["outcome"]
    return {test for test, outcome in last.items() if outcome == "passed"}


def _why(report: pytest.TestReport) -> str:
    """The reason of a skip, or the last line of a failure."""
    if report.passed:
        return ""
    if isinstance(report.longrepr, tuple):
        return str(report.longrepr[-1])
    crash = getattr(report.longrepr, "reprcrash", None)
    return str(getattr(crash, "message", report.longrepr))[:500]
