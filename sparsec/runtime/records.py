"""Tuned records: the best schedule of a kernel on a target, one small file each, read here and written by the tuner.

A record's key has everything that can make a schedule wrong or slow elsewhere: the kernel's spec, the length bucket,
the target with its device and driver, and the versions of the compiler, of torch and of sparsec. What a schedule had
no field for when a record was written is what the default has today.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

from sparsec.lower.registry import default
from sparsec.plan.grad_specs import AnySpec
from sparsec.runtime.target import Target
from sparsec.tile.schedule import Schedule


def bucket(longest: int) -> int:
    """The power of two at or above the longest length of a call: records are kept per bucket."""
    return 1 << max(longest - 1, 0).bit_length()


@cache
def toolchain(backend: str) -> str:
    """Device, driver and compiler versions as one line."""
    parts = [f"{name} {_version(name)}" for name in ("sparsec", "torch")]
    if backend == "triton":
        import torch

        here = torch.cuda.is_available()
        name = torch.cuda.get_device_name() if here else "no GPU"
        parts += [f"triton {_version('triton')}", name, f"cuda {torch.version.cuda}"]
    if backend == "tvm":
        import platform

        parts += [f"tvm {_version('apache-tvm')}", platform.processor() or platform.machine()]
    return ", ".join(parts)


def _version(package: str) -> str:
    """The installed version; "source" for a package that runs from its checkout."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return "source"


def record_key(spec: AnySpec, target: Target, length: int, packed: bool = False) -> str:
    """The key as hex; any component that differs gives another key. ``packed``: of packed documents."""
    text = "\n".join([repr(spec), target.name, str(length), toolchain(target.backend), *["packed"] * packed])
    return hashlib.sha256(text.encode()).hexdigest()[:32]


@dataclass(frozen=True, slots=True)
class Record:
    """A tuned schedule with what was measured.

    Attributes:
        time_s, default_s: median seconds of the winner and of the default schedule, taken in turn.
        trials: how many configurations were tried.
    """

    kernel: str
    schedule: Schedule
    time_s: float
    default_s: float
    trials: int
    toolchain: str


TIED = frozenset({"producer", "maximum"})
"""Fields that ask something of the others: records from before them were found without."""


class Records:
    """The folder ``<cache>/records``; unreadable or altered files are set aside and count as missing."""

    generation: ClassVar[int] = 0
    """Goes up whenever this process writes a record, so that calls worked out before look again."""

    def __init__(self, cache_dir: Path) -> None:
        self.folder = cache_dir / "records"

    def best(self, spec: AnySpec, target: Target, length: int, packed: bool = False) -> Schedule | None:
        """The tuned schedule for this key, if one reads back intact; for packed documents else that of dense calls."""
        for key in dict.fromkeys(record_key(spec, target, length, p) for p in (packed, False)):
            record = self.read(key, lambda: default(spec, target.name))
            if record is not None:
                return record.schedule
        return None

    def read(self, key: str, usual: Callable[[], Schedule] = Schedule) -> Record | None:
        """A record by key; a corrupt one is renamed to ``.corrupt`` and forgotten. ``usual``: the kernel's default."""
        path = self.folder / f"{key}.json"
        try:
            content = path.read_bytes()
        except OSError:
            return None
        try:
            return parse(content, usual)
        except ValueError:
            _set_aside(path)
            return None

    def write(self, key: str, record: Record) -> None:
        """Store a record in one step, so that a kill leaves the old one or the new one."""
        self.folder.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=self.folder, suffix=".tmp")
        with os.fdopen(handle, "w") as file:
            file.write(serialise(record))
        os.replace(temporary, self.folder / f"{key}.json")
        Records.generation += 1


def serialise(record: Record) -> str:
    """A record as JSON with a digest of its content."""
    body = asdict(record)
    return json.dumps({"record": body, "sha256": _digest(body)}, indent=1)


def parse(content: bytes, usual: Callable[[], Schedule] = Schedule) -> Record:
    """The record in a file's content; ValueError if it is none, or its digest does not match.

    ``usual`` is the schedule that fields stand for which are not in the file.
    """
    data = json.loads(content)
    body = data.get("record") if isinstance(data, dict) else None
    if not isinstance(body, dict) or _digest(body) != data.get("sha256"):
        raise ValueError("the record was altered after it was written")
    saved = body.pop("schedule", None)
    if not isinstance(saved, dict) or {*body} != {f.name for f in fields(Record)} - {"schedule"}:
        raise ValueError("a record of another version of sparsec")
    return Record(schedule=_schedule(saved, usual), **body)


def _schedule(saved: Mapping[str, Any], usual: Callable[[], Schedule]) -> Schedule:
    """A schedule back from what was saved of it."""
    known = {f.name for f in fields(Schedule)}
    read: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in saved.items() if k in known}
    later = known - {*read}
    plain = {name: getattr(Schedule(), name) for name in later & TIED}
    return replace(usual() if later else Schedule(), **plain, **read)


def _digest(body: Mapping[str, object]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _set_aside(path: Path) -> None:
    try:
        path.rename(path.with_suffix(".corrupt"))
    except OSError:
        return
