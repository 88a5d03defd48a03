"""Watching the passes: printed changes, unified diffs, times. None of it is in a pass."""

from __future__ import annotations

import difflib
import time
from dataclasses import dataclass, field

from sparsec.ir.variant import Variant


def diff(name: str, before: Variant, after: Variant) -> str:
    """The unified diff of a pass on the graph's text; empty if it changed nothing."""
    lines = difflib.unified_diff(
        before.text().splitlines(), after.text().splitlines(), "before", f"after {name}", lineterm=""
    )
    return "\n".join(lines)


def print_changes(name: str, before: Variant, after: Variant) -> None:
    """Prints the graph after a pass that changed it."""
    if after != before:
        print(f"# after {name}\n{after.text()}")


@dataclass(slots=True)
class Diffs:
    """Collects (pass, diff) for every pass, empty diffs included."""

    found: list[tuple[str, str]] = field(default_factory=list)

    def __call__(self, name: str, before: Variant, after: Variant) -> None:
        self.found.append((name, diff(name, before, after)))


@dataclass(slots=True)
class Times:
    """Seconds from one pass to the next, verification included."""

    seconds: list[tuple[str, float]] = field(default_factory=list)
    _last: float = field(default_factory=time.perf_counter)

    def __call__(self, name: str, before: Variant, after: Variant) -> None:
        now = time.perf_counter()
        self.seconds.append((name, now - self._last))
        self._last = now
