"""What a tuning found: the winner of each kernel, every trial, and one sentence about those that were rejected."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from sparsec.autotune.space import fields_of
from sparsec.autotune.trial import Trial
from sparsec.tile.schedule import Schedule


def summary(trials: Iterable[Trial]) -> str:
    """For example "17 of 240 rejected: 12 shared memory, 3 compile, 2 wrong result"."""
    ended = [t for t in trials if t.state != "lost"]
    whys = Counter(t.why for t in ended if t.state == "rejected")
    count = f"{sum(whys.values())} of {len(ended)} rejected"
    listed = ", ".join(f"{n} {why}" for why, n in whys.most_common())
    return f"{count}: {listed}" if listed else count


@dataclass(frozen=True, slots=True)
class KernelReport:
    """The tuning of one kernel.

    Attributes:
        schedule: what runs from now on; None where no configuration could be used.
        time_s, default_s: median seconds of it and of the default, timed in turn; None where neither was timed.
        stopped: why it ended early, "" if it did not.
    """

    kernel: str
    schedule: Schedule | None
    default: Schedule
    time_s: float | None
    default_s: float | None
    trials: tuple[Trial, ...]
    stopped: str = ""

    @property
    def speedup(self) -> float:
        """The default's time over the winner's; 1 where the default stays."""
        return self.default_s / self.time_s if self.default_s and self.time_s else 1.0

    @property
    def changed(self) -> dict[str, Any]:
        """The fields in which the winner differs from the default."""
        if self.schedule is None:
            return {}
        own, base = fields_of(self.schedule), fields_of(self.default)
        return {name: value for name, value in own.items() if value != base[name]}

    def __str__(self) -> str:
        if self.schedule is None and self.stopped:
            said = f"{self.kernel}: {self.stopped} before it had a result; {summary(self.trials)}"
            return f"{said}; the same command goes on from here" if self.stopped == "interrupted" else said
        if self.schedule is None:
            return f"{self.kernel}: no configuration can be used; {summary(self.trials)}"
        fields = ", ".join(f"{n} = {v}" for n, v in self.changed.items()) or "the default stays"
        times = "" if self.time_s is None else f", {self.time_s * 1e3:.3g} ms, {self.speedup:.2f} times its speed"
        early = f"; stopped early: {self.stopped}" if self.stopped else ""
        return f"{self.kernel}: {fields}{times}; {summary(self.trials)}{early}"

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON values."""
        rows = [{**asdict(t), "schedule": fields_of(t.schedule)} for t in self.trials]
        chosen = None if self.schedule is None else fields_of(self.schedule)
        times = {"time_s": self.time_s, "default_s": self.default_s, "speedup": self.speedup}
        state = {"stopped": self.stopped, "summary": summary(self.trials)}
        return {"kernel": self.kernel, "schedule": chosen, "changed": self.changed, **times, **state, "trials": rows}


@dataclass(frozen=True, slots=True)
class Report:
    """The tuning of a plan.

    Attributes:
        notes: what the user should know, such as a result that cannot be kept.
        database: the trial database; None where it was kept in memory.
    """

    target: str
    kernels: tuple[KernelReport, ...]
    seconds: float
    notes: tuple[str, ...] = ()
    database: str | None = None

    @property
    def summary(self) -> str:
        """The rejections of all kernels in one sentence."""
        return summary(t for k in self.kernels for t in k.trials)

    def __str__(self) -> str:
        return "\n".join([*map(str, self.kernels), *self.notes])

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON values."""
        return {
            "target": self.target, "seconds": self.seconds, "summary": self.summary, "notes": list(self.notes),
            "database": self.database, "kernels": [k.to_dict() for k in self.kernels],
        }  # fmt: skip
