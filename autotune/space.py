"""The tuner's space: a configuration is a Schedule, the default with some fields replaced by choices."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, fields, replace
from typing import Any

from sparsec.tile.schedule import Schedule

Params = dict[str, str]
"""One choice per field of the space, as JSON text: what a trial database can store."""


def encode(value: object) -> str:
    """A choice as JSON text; equal choices have equal texts."""
    return json.dumps(value)


def decode(text: str) -> Any:
    """A choice back from its text; lists become tuples, as schedules have them."""
    value = json.loads(text)
    return tuple(value) if isinstance(value, list) else value


def fields_of(schedule: Schedule) -> dict[str, Any]:
    """A schedule as JSON values."""
    return {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(schedule).items()}


def schedule_of(values: Mapping[str, Any]) -> Schedule:
    """A schedule back from JSON values; fields that schedules no longer have are left out."""
    known = {f.name for f in fields(Schedule)}
    kept: dict[str, Any] = {n: tuple(v) if isinstance(v, list) else v for n, v in values.items() if n in known}
    return Schedule(**kept)


class Space:
    """All schedules that differ from a default in the given fields; the default is always one of them.

    Attributes:
        default: what runs without a tuner.
        choices: the values of each field, encoded, in the order given.
        known: schedules of the space that were best somewhere, which are tried right after the default.
    """

    def __init__(
        self, default: Schedule, choices: Mapping[str, tuple[object, ...]], known: tuple[Schedule, ...] = ()
    ) -> None:
        self.default, self.known = default, known
        own = {name: encode(getattr(default, name)) for name in choices}
        self.choices: dict[str, tuple[str, ...]] = {
            name: tuple(dict.fromkeys([own[name], *map(encode, values)])) for name, values in choices.items()
        }

    @property
    def size(self) -> int:
        """The number of configurations."""
        return math.prod(len(values) for values in self.choices.values())

    @property
    def digest(self) -> str:
        """What tells two spaces apart: trials of one are no trials of another."""
        text = json.dumps([fields_of(self.default), self.choices], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def schedule(self, params: Mapping[str, str]) -> Schedule:
        """The schedule of a choice per field."""
        return replace(self.default, **{name: decode(text) for name, text in params.items()})

    def params(self, schedule: Schedule) -> Params:
        """The choices that make a schedule of this space."""
        found = {name: encode(getattr(schedule, name)) for name in self.choices}
        assert self.schedule(found) == schedule, f"{schedule} is not in the space"
        return found

    def configurations(self) -> Iterator[Params]:
        """Every choice of every field, the first ones first."""
        for values in itertools.product(*self.choices.values()):
            yield dict(zip(self.choices, values, strict=True))
