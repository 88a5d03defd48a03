"""A run of `sparsec bench`: what was asked, rows that were there before, and each row kept as soon as it is done."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sparsec.benchmarks import crossover, events
from sparsec.benchmarks.ahead import build_apart
from sparsec.benchmarks.apart import rows_apart
from sparsec.benchmarks.groups import small
from sparsec.benchmarks.own import own
from sparsec.benchmarks.registry import cases_named
from sparsec.benchmarks.row import HEAD, aligned, read_json, shape_of, table_of, write_json
from sparsec.benchmarks.run import run_cases
from sparsec.ir.error import InputError

Report = Callable[[str], None]
Json = dict[str, Any]
Keep = Callable[[Sequence[Json]], None]


@dataclass(frozen=True, slots=True)
class Asked:
    """What a run of benchmarks was asked for.

    Attributes:
        table: `peers`, `crossover` or `events`.
        ahead: how many cases are built at once before any is timed; 0: each as its turn comes.
        out: a file that always has the rows so far; with ``resume`` those that it has are not taken again.
    """

    table: str
    rounds: int = 5
    trials: int = 0
    skip: tuple[str, ...] = ()
    step_limit: float = crossover.LONGEST_STEP
    heads: str = ""
    small: bool = False
    apart: bool = True
    limit: float = 0.0
    ahead: int = 0
    out: str = ""
    resume: bool = False

    @property
    def setting(self) -> crossover.Setting:
        """That of crossovers. Raises InputError where the heads are no two numbers that fit."""
        return crossover.with_heads(crossover.present(), self.heads) if self.heads else crossover.present()

    @property
    def options(self) -> list[str]:
        """Those that a process of one case is given."""
        found = [f"--rounds={self.rounds}", f"--trials={self.trials}", *(f"--skip={name}" for name in self.skip)]
        found += ["--small"] if self.small else []
        more = {"crossover": [*self.crossing, f"--step-limit={self.step_limit}"], "events": ["--events"]}
        return found + more.get(self.table, [])

    @property
    def crossing(self) -> list[str]:
        """Those that say which kernels a crossover builds."""
        return ["--crossover", f"--heads={self.heads}"] if self.table == "crossover" else []


def rows_of(names: Sequence[str], asked: Asked, report: Report) -> list[Json]:
    """The rows of all names as JSON values, those of before among them."""
    before = {name_of(row): row for row in (kept_before(asked, names) if asked.resume else [])}
    done = [row for row in before.values() if not is_open(row)]
    left = [name for name in names if name not in map(name_of, done)]
    if done:
        report(f"{len(done)} rows were there before")

    def keep(rows: Sequence[Json]) -> None:
        now = {name_of(row) for row in rows}
        later = [row for name, row in before.items() if is_open(row) and name not in now]
        if asked.out:
            write_json([*done, *rows, *later], Path(asked.out))

    if asked.ahead and not asked.small:
        build_apart(left, asked.crossing, asked.ahead, asked.limit, report)
    begun = {name: before[name] for name in left if name in before}
    if asked.apart and len(left) > 1:
        rows = rows_apart(left, asked.options, asked.limit, report, keep, begun)
    else:
        rows = _here(left, asked, report, keep, begun)
    keep(rows)
    return [*done, *rows]


MARK = {"peers": "pair", "crossover": "points", "events": "kernels"}
"""What rows of each table have and those of the others have not."""


def kept_before(asked: Asked, names: Sequence[str]) -> list[Json]:
    """The rows that ``asked.out`` has. Raises InputError where one is of another table, shape or device than asked."""
    rows = read_json(Path(asked.out))
    for row in rows:
        if MARK[asked.table] not in row:
            raise _other(row, asked, f"has no {MARK[asked.table]}", f"rows are those of {asked.table}")
        if (name := name_of(row)) in names and row["shape"] != (shape := _shape(name, asked)):
            raise _other(row, asked, f"was taken at {row['shape']}", f"{shape} is asked for")
    return rows


def _other(row: Json, asked: Asked, said: str, rule: str) -> InputError:
    return InputError(asked.out, f"the row of {name_of(row)} {said}", rule, "give --out another file", "file")


def _shape(name: str, asked: Asked) -> object:
    """What a row of a name says of its shape, as JSON."""
    if asked.table == "crossover":
        return crossover.shape_of(asked.setting)
    (case,) = cases_named((name,))
    return json.loads(json.dumps(shape_of(small(case) if asked.small else case)))


def name_of(row: Mapping[str, Any]) -> str:
    """The case or preset of a row."""
    return str(row["case"] if "case" in row else row["preset"])


def is_open(row: Mapping[str, Any]) -> bool:
    """Whether a later run shall take the row again, or go on from it."""
    return bool(row.get("unfinished") or row.get("refused"))


def _here(
    names: Sequence[str], asked: Asked, report: Report, keep: Keep, begun: Mapping[str, Mapping[str, Any]]
) -> list[Json]:
    """The rows of all names, in this process."""
    rows: list[Json] = []

    def add(row: Json) -> None:
        rows.append(row)
        keep(rows)

    if not names:
        return rows
    if asked.table == "crossover":
        known = {name: crossover.points_of(row, asked.setting) for name, row in begun.items()}
        for found in crossover.crossovers(
            names, asked.setting, rounds=asked.rounds, trials=asked.trials, longest=asked.step_limit, report=report,
            known=known, keep=lambda row: keep([*rows, asdict(row)]),
        ):  # fmt: skip
            add(asdict(found))
    elif asked.table == "events":
        for timed in events.event_rows(names, trials=asked.trials, as_small=asked.small, report=report):
            add(asdict(timed))
    else:
        for name in names:
            made = run_cases(
                [name], lambda c, x: own(c, x, asked.trials), rounds=asked.rounds, skip=asked.skip, report=report,
                as_small=asked.small,
            )  # fmt: skip
            for row in made:
                add(asdict(row))
    return rows


def text_of(rows: Sequence[Mapping[str, Any]], table: str) -> str:
    """Rows as a table."""
    if table == "crossover":
        return aligned(crossover.HEAD, map(crossover.line, rows))
    return aligned(events.HEAD, events.table(rows)) if table == "events" else aligned(HEAD, table_of(rows))
