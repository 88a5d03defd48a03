"""What is known of one configuration: timed, rejected for a reason, or lost with the process that tried it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from sparsec.autotune.space import fields_of, schedule_of
from sparsec.tile.schedule import Schedule

Why = Literal["illegal", "shared memory", "registers", "compile", "time limit", "crash", "wrong result"]
State = Literal["timed", "rejected", "lost"]


class TuneError(RuntimeError):
    """Tuning that cannot start or go on; says why and what to do."""


@dataclass(frozen=True, slots=True)
class Rejection:
    """Why a configuration is not used: one of few words to count by, and a sentence."""

    why: Why
    reason: str


class Unfit(TuneError):
    """A configuration that failed while it ran.

    Attributes:
        device_lost: whether it took the device with it, so that nothing else can run in this process.
    """

    def __init__(self, rejection: Rejection, device_lost: bool) -> None:
        advice = "; it will not be tried again, start again to go on with the rest" if device_lost else ""
        super().__init__(f"a candidate failed: {rejection.reason}{advice}")
        self.rejection, self.device_lost = rejection, device_lost


@dataclass(frozen=True, slots=True)
class Built:
    """What the compiler said of a configuration; None where the back end does not say.

    Attributes:
        seconds: how long compiling took.
        shared: bytes of shared memory per program.
    """

    seconds: float = 0.0
    registers: int | None = None
    spills: int | None = None
    shared: int | None = None


@dataclass(frozen=True, slots=True)
class Comparison:
    """A challenger timed in turn with the incumbent.

    Attributes:
        ratio: the median over rounds of the challenger's time over the incumbent's.
        low, high: confidence bounds of that median.
        seconds, incumbent_s: median seconds of each.
    """

    ratio: float
    low: float
    high: float
    seconds: float
    incumbent_s: float
    rounds: int

    @property
    def wins(self) -> bool:
        """Whether the challenger is quicker beyond noise."""
        return self.high < 1.0


@dataclass(frozen=True, slots=True)
class Trial:
    """One configuration that was tried.

    Attributes:
        number: its place in the trial database.
        ratio: its time over that of the study's first timed configuration, normally the default.
        seconds: its median time.
        won: whether it became the incumbent.
    """

    number: int
    schedule: Schedule
    state: State
    why: str = ""
    reason: str = ""
    ratio: float | None = None
    seconds: float | None = None
    won: bool = False
    built: Built | None = None

    def to_json(self) -> str:
        """The trial as one line of JSON."""
        return json.dumps({**asdict(self), "schedule": fields_of(self.schedule)})


def trial_from(text: str) -> Trial:
    """A trial back from its JSON; what trials no longer have is left out."""
    data: dict[str, Any] = json.loads(text)
    built, schedule = data.pop("built", None), schedule_of(data.pop("schedule"))
    return Trial(schedule=schedule, built=Built(**_known(Built, built)) if built else None, **_known(Trial, data))


def _known(kind: type[Any], values: Mapping[str, Any]) -> dict[str, Any]:
    names = {f.name for f in fields(kind)}
    return {name: value for name, value in values.items() if name in names}
