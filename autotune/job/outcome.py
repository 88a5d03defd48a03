"""What the job found out about one variant, as plain values that a JSON file keeps."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

RESULTS = "results.json"


@dataclass(frozen=True, slots=True)
class Contender:
    """One way to run the layer.

    Attributes:
        form: which of several forms was the fastest, "" if there is one.
        seconds: the median of a call; None where it did not run, and ``reason`` says why.
        peak: bytes that one call held beyond its inputs; None where that cannot be measured.
    """

    name: str
    form: str = ""
    seconds: float | None = None
    peak: int | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class KernelTime:
    """One kernel of the plan: seconds under the default and the tuned schedule, and what the model says of the latter.

    Attributes:
        floor: its fewest bytes over the target's copy rate.
        changed: the fields in which the tuned schedule differs from the default.
    """

    name: str
    kind: str
    default_s: float
    tuned_s: float
    predicted_s: float
    floor: float
    changed: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Picture:
    """An SVG with its caption."""

    caption: str
    svg: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """One variant on one target and one set of inputs.

    Attributes:
        key: the name of its folder.
        command: the words that name the variant.
        load: processes per core that wanted to run when the job began; well above 1, others were among them.
        passes: (pass, unified diff) of each pass; an empty diff where it changed nothing.
        contenders: dense SDPA, FlexAttention, sparsec's default and sparsec tuned, in this order.
        error, tile: root-mean-square error over root-mean-square truth: of the worst output, of its worst 64 rows.
        bounds: the most that each of the two may be.
        right: whether every output is.
        mass: share of the dense attention mass that was kept: mean, p5, worst_head, worst; {} where there is none.
        processor_s: processor time of a tuned call over the cores; None on a GPU.
        tuning: the tuner's report.
    """

    key: str
    name: str
    command: str
    target: str
    machine: str
    load: float
    dtype: str
    dims: dict[str, int]
    declaration: str
    passes: list[tuple[str, str]]
    plan: str
    notes: list[str]
    contenders: list[Contender]
    error: float
    tile: float
    bounds: tuple[float, float]
    right: bool
    mass: dict[str, float]
    predicted_s: float
    processor_s: float | None
    predicted_peak: int
    kernels: list[KernelTime]
    tuning: dict[str, Any]
    pictures: list[Picture]

    def contender(self, name: str) -> Contender:
        """The contender of this name."""
        return next(c for c in self.contenders if c.name == name)

    @property
    def seconds(self) -> float:
        """The tuned plan's time."""
        found = self.contenders[-1].seconds
        assert found is not None, "the tuned plan was not timed"
        return found

    @property
    def defaults_stay(self) -> bool:
        """Whether tuning found nothing better than the default schedules."""
        return not any(k.changed for k in self.kernels)

    @property
    def off_by(self) -> float:
        """By what factor the prediction misses the measured time, 1 or more."""
        return max(self.predicted_s / self.seconds, self.seconds / self.predicted_s)


def outcome_from(data: dict[str, Any]) -> Outcome:
    """An outcome back from its JSON values; TypeError or KeyError where they are of another version."""
    parts = {"contenders": Contender, "kernels": KernelTime, "pictures": Picture}
    made = {f.name: data[f.name] for f in fields(Outcome)}
    made |= {name: [kind(**item) for item in data[name]] for name, kind in parts.items()}
    made["passes"] = [(name, text) for name, text in data["passes"]]
    made["bounds"] = (data["bounds"][0], data["bounds"][1])
    return Outcome(**made)


def keep(folder: Path, outcome: Outcome) -> list[Outcome]:
    """Put an outcome into the folder's results and give all that are there; it takes the place of one of its key."""
    path = folder / RESULTS
    found = list({**{o.key: o for o in outcomes(folder)}, outcome.key: outcome}.values())
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps({"variants": [asdict(o) for o in found]}, indent=1))
    temporary.replace(path)
    return found


def outcomes(folder: Path) -> list[Outcome]:
    """The outcomes that a folder holds; results of another version count as none."""
    path = folder / RESULTS
    try:
        return [outcome_from(data) for data in json.loads(path.read_text())["variants"]]
    except (OSError, ValueError, KeyError, TypeError):
        return []
