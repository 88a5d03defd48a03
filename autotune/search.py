"""The search over one kernel: propose, build, admit, time against the incumbent, keep what wins beyond noise.

It knows nothing of kernels, back ends or clocks: a ``Subject`` says what a configuration is worth and a ``Builder``
compiles. So the same loop tunes real kernels and the tests' toy ones.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Protocol

from sparsec.autotune.interrupt import heard
from sparsec.autotune.progress import Progress, Show
from sparsec.autotune.study import Study
from sparsec.autotune.trial import Built, Comparison, Rejection, Trial, Unfit
from sparsec.tile.schedule import Schedule


class Subject(Protocol):
    """A kernel that is tuned."""

    name: str

    def refuse(self, schedule: Schedule) -> Rejection | None:
        """Why a configuration cannot work, known before it is compiled."""

    def admit(self, schedule: Schedule) -> Rejection | None:
        """Why a compiled configuration may not be used: its results are wrong, or it does not run."""

    def compare(self, challenger: Schedule, incumbent: Schedule, final: bool) -> Comparison:
        """Time an admitted configuration in turn with the incumbent; with more rounds if this is the final one.

        Raises Unfit where it does not run after all; ``admit`` may, too, where no other can run after it.
        """

    def keep(self, schedule: Schedule, found: Comparison, trials: int) -> None:
        """Store the best configuration; ``found`` compares it with the default."""


class Builder(Protocol):
    """Compiles configurations, several at once.

    Attributes:
        batch: how many configurations it likes to have in hand.
    """

    batch: int

    def submit(self, number: int, schedule: Schedule) -> None:
        """Start compiling; the number names the trial."""

    def finished(self, deadline: float) -> Sequence[tuple[int, Built | Rejection]]:
        """What is compiled; waits for some of it, or for all of it where compiling would disturb the clock."""

    def cancel(self) -> None:
        """Forget what is being compiled."""


@dataclass(frozen=True, slots=True)
class Budget:
    """When to stop.

    Attributes:
        trials: configurations in all, those of earlier runs included.
        deadline: on the monotonic clock; None for none.
    """

    trials: int
    deadline: float | None = None

    @property
    def over(self) -> bool:
        """Whether the time is up."""
        return self.deadline is not None and time.monotonic() >= self.deadline


@dataclass(frozen=True, slots=True)
class Best:
    """The incumbent: a configuration, and its time over that of the first timed one."""

    schedule: Schedule
    ratio: float


@dataclass(frozen=True, slots=True)
class Found:
    """What a search ends with.

    Attributes:
        schedule: the best configuration; None where none could be used.
        final: it against the default, timed last; None where it is the default or the search was stopped.
        stopped: why the search ended early, "" if it did not.
    """

    schedule: Schedule | None
    final: Comparison | None
    trials: tuple[Trial, ...]
    stopped: str = ""


class Search:
    """One search; ``run`` it once."""

    def __init__(self, subject: Subject, study: Study, builder: Builder, budget: Budget, show: Show | None) -> None:
        self.subject, self.study, self.builder, self.budget, self.show = subject, study, builder, budget, show
        self.ended = [t for t in study.trials() if t.state != "lost"]
        self.best: Best | None = None
        self.waiting: dict[int, Schedule] = {}
        self.held: dict[int, Built | Rejection] = {}
        self.first: int | None = None
        self.began, self.before = time.monotonic(), len(self.ended)
        self.default_s: list[float] = []

    def run(self) -> Found:
        """Search until the budget is spent, every configuration was tried, or Ctrl-C; trials are stored as they end."""
        stopped, final = "the tuner failed", None
        try:
            with heard() as check:
                self._begin()
                while self._fill():
                    self._judge_all(self.builder.finished(self._patience))
                    check()
                    if self.budget.over and self.first is None:
                        break
                stopped = "time is up" if self.budget.over and len(self.ended) < self._total else ""
                final = self._final()
                check()
        except KeyboardInterrupt:
            stopped = "interrupted"
        finally:
            self._close(stopped)
        return Found(self.best.schedule if self.best else None, final, tuple(self.study.trials()), stopped)

    def _begin(self) -> None:
        """Start from the winner of earlier runs, admitted anew, or from the default and then what is known as good."""
        timed = [t for t in self.ended if t.state == "timed" and t.ratio is not None]
        for old in [t for t in reversed(timed) if t.won] + [t for t in timed if t.schedule == self._default]:
            if self._rebuilt(old.schedule) is None:
                assert old.ratio is not None and old.seconds is not None
                self.best = Best(old.schedule, old.ratio)
                if old.schedule != self._default:  # a kill may have come between the verdict and the record
                    self.subject.keep(old.schedule, _as_stored(old.ratio, old.seconds), len(self.ended))
                return
        if not any(t.schedule == self._default for t in self.ended):
            self._propose(self._default)
            self.first = next(iter(self.waiting), None)
        tried = {t.schedule for t in self.ended} | {*self.waiting.values()}
        for known in [s for s in self.study.space.known if s not in tried]:
            if len(self.ended) + len(self.waiting) < self.budget.trials:
                self._propose(known)

    @property
    def _patience(self) -> float:
        """Until when to wait for compilers: the default is waited for."""
        return float("inf") if self.first is not None or self.budget.deadline is None else self.budget.deadline

    @property
    def _default(self) -> Schedule:
        return self.study.space.default

    def _rebuilt(self, schedule: Schedule) -> Rejection | None:
        """Build and admit a configuration outside any trial."""
        self.builder.submit(-1, schedule)
        for _, built in self.builder.finished(float("inf")):
            if isinstance(built, Rejection):
                return built
        return self.subject.admit(schedule)

    def _fill(self) -> bool:
        """Propose until enough is being compiled; false where nothing is left to wait for."""
        while len(self.waiting) < self.builder.batch and len(self.ended) + len(self.waiting) < self.budget.trials:
            if self.budget.over or not self._propose(None):
                break
        return bool(self.waiting)

    def _propose(self, wanted: Schedule | None) -> bool:
        asked = self.study.ask(wanted)
        if asked is None:
            return False
        number, schedule = asked
        refused = self.subject.refuse(schedule)
        if refused is not None:
            self._reject(number, schedule, refused)
        else:
            self.waiting[number] = schedule
            self.builder.submit(number, schedule)
        return True

    def _judge_all(self, compiled: Sequence[tuple[int, Built | Rejection]]) -> None:
        """Judge in the order of asking; what was compiled before the default waits for it."""
        self.held = dict(sorted({**self.held, **dict(compiled)}.items()))
        if self.first is not None:
            if self.first not in self.held:
                return
            self._judge(self.first, self.held.pop(self.first))
            self.first = None
        while self.held and not self.budget.over:
            number = next(iter(self.held))
            self._judge(number, self.held.pop(number))

    def _judge(self, number: int, built: Built | Rejection) -> None:
        """Admit and time what was compiled."""
        schedule = self.waiting[number]
        self.study.start(number)
        refused = built if isinstance(built, Rejection) else None
        try:
            refused = refused or self.subject.admit(schedule)
            found = (
                None if refused else self.subject.compare(schedule, (self.best or Best(schedule, 1.0)).schedule, False)
            )
        except Unfit as error:
            refused, found = error.rejection, None
            if error.device_lost:
                self._reject(number, schedule, refused)
                raise
        if refused is not None:
            return self._reject(number, schedule, refused, built if isinstance(built, Built) else None)
        assert found is not None and isinstance(built, Built)
        return self._timed(number, schedule, built, found)

    def _reject(self, number: int, schedule: Schedule, refused: Rejection, built: Built | None = None) -> None:
        self._tell(Trial(number, schedule, "rejected", refused.why, refused.reason, built=built))

    def _timed(self, number: int, schedule: Schedule, built: Built, found: Comparison) -> None:
        """Keep a time, and the configuration itself if it is the new incumbent."""
        against = self.best or Best(schedule, found.ratio)
        if against.schedule == self._default:
            self.default_s.append(found.incumbent_s)
        won = self.best is None or found.wins
        ratio = 1.0 if self.best is None else against.ratio * found.ratio
        self._tell(Trial(number, schedule, "timed", "", "", ratio, found.seconds, won, built))
        if won:
            self.best = Best(schedule, ratio)
            self.subject.keep(schedule, _as_stored(ratio, found.seconds), len(self.ended))

    def _tell(self, trial: Trial) -> None:
        self.waiting.pop(trial.number, None)
        self.study.tell(trial)
        self.ended.append(trial)
        if self.show is not None:
            self.show(self._progress())

    @property
    def _total(self) -> int:
        """How many configurations are tried if nothing stops the search."""
        return min(self.budget.trials, self.study.space.size)

    def _progress(self) -> Progress:
        done, spent = len(self.ended), time.monotonic() - self.began
        left = spent / max(done - self.before, 1) * max(self._total - done, 0)
        if self.budget.deadline is not None:
            left = min(left, max(self.budget.deadline - time.monotonic(), 0.0))
        rejected = sum(t.state == "rejected" for t in self.ended)
        return Progress(self.subject.name, done, self._total, rejected, self.best.ratio if self.best else None, left)

    def _final(self) -> Comparison | None:
        """The winner against the default once more; where the win does not repeat, the default stays."""
        if self.best is None or not self._default_runs():
            return None
        if self.best.schedule == self._default:
            self._keep_default(self.default_s)
            return None
        found = self.subject.compare(self.best.schedule, self._default, True)
        if found.wins:
            self.subject.keep(self.best.schedule, found, len(self.ended))
            return found
        self.best = Best(self._default, 1.0)
        self._keep_default([found.incumbent_s])
        return None

    def _keep_default(self, seconds: list[float]) -> None:
        if seconds:
            self.subject.keep(self._default, _as_stored(1.0, median(seconds)), len(self.ended))

    def _default_runs(self) -> bool:
        return any(t.schedule == self._default and t.state == "timed" for t in self.ended)

    def _close(self, why: str) -> None:
        """End the trials that are open, so that a later run may try them."""
        self.builder.cancel()
        for number, schedule in self.study.open.items():
            self.study.tell(Trial(number, schedule, "lost", reason=why))


def _as_stored(ratio: float, seconds: float) -> Comparison:
    """A configuration against the default, as the trials add up to it; the final comparison replaces it."""
    return Comparison(ratio, ratio, ratio, seconds, seconds / ratio, 0)
