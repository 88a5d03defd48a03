"""How far tuning has come, and a bar that shows it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Progress:
    """Where the tuning of one kernel stands, told after every trial.

    Attributes:
        done, total: configurations, those of earlier runs included.
        ratio: the incumbent's time over the default's; None before anything was timed.
        seconds_left: a guess from the pace so far.
    """

    kernel: str
    done: int
    total: int
    rejected: int
    ratio: float | None
    seconds_left: float

    def __str__(self) -> str:
        speed = "" if self.ratio is None else f", {1 / self.ratio:.2f} times the default's speed"
        counts = f"{self.done} of {self.total} tried, {self.rejected} rejected"
        return f"{self.kernel}: {counts}{speed}, about {self.seconds_left:.0f} s left"


Show = Callable[[Progress], None]


@contextmanager
def bar() -> Iterator[Show]:
    """A progress bar on the terminal, one line per kernel, with the time left; give what it yields to ``tune``."""
    from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn
    from rich.progress import Progress as Rich

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[state]}"))
    display, lines = Rich(*columns), dict[str, TaskID]()

    def show(progress: Progress) -> None:
        if progress.kernel not in lines:
            display.start()  # a tuning that is refused draws nothing
            lines[progress.kernel] = display.add_task(progress.kernel, state="")
        display.update(lines[progress.kernel], completed=progress.done, total=progress.total, state=_state(progress))

    try:
        yield show
    finally:
        if lines:
            display.stop()


def _state(progress: Progress) -> str:
    speed = "" if progress.ratio is None else f"{1 / progress.ratio:.2f}x the default, "
    return f"{speed}{progress.rejected} rejected, {progress.seconds_left:.0f} s left"
