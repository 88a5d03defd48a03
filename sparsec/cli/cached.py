"""What lies in the cache folder: records, libraries, sources, trials; and whether each is what it was when written."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

KERNELS = ("tvm", "triton")
TUNED = ("records", "trials.db")


@dataclass(frozen=True, slots=True)
class Entry:
    """One file. ``problem`` says why it is corrupt; "" if it is intact."""

    kind: str
    path: Path
    what: str
    problem: str = ""

    @property
    def size(self) -> int:
        """Bytes."""
        return self.path.stat().st_size


def entries(folder: Path) -> list[Entry]:
    """Every entry of a cache folder; none where it does not exist."""
    return [*_records(folder / "records"), *_libraries(folder / "tvm"), *_sources(folder / "triton"), *_trials(folder)]


def _records(folder: Path) -> Iterator[Entry]:
    from sparsec.runtime.records import parse

    for path in sorted(folder.glob("*.json")):
        try:
            record = parse(path.read_bytes())
        except ValueError as error:
            yield Entry("record", path, "tuned schedule", f"{error}")
            continue
        gain = f"{record.default_s / record.time_s:.2f} times the default" if record.time_s else "not timed"
        yield Entry("record", path, f"{record.kernel}: {gain}, {record.trials} trials, {record.toolchain}")
    for path in sorted(folder.glob("*.corrupt")):
        yield Entry("record", path, "set aside when it was read", "it was altered after it was written")


def _libraries(folder: Path) -> Iterator[Entry]:
    """A library's name ends in the first digits of its hash."""
    for path in sorted(folder.glob("*.so")):
        same = hashlib.sha256(path.read_bytes()).hexdigest().startswith(path.stem.rpartition("_")[2])
        yield Entry("library", path, "CPU kernel", "" if same else "its hash differs from its name")


def _sources(folder: Path) -> Iterator[Entry]:
    """A source's name ends in the first digits of its hash."""
    for path in sorted(folder.glob("*_*.py")):
        name, _, digest = path.stem.rpartition("_")
        same = hashlib.sha256(path.read_bytes()).hexdigest().startswith(digest)
        yield Entry("source", path, f"Triton kernel {name}", "" if same else "its hash differs from its name")


def _trials(folder: Path) -> Iterator[Entry]:
    path = folder / "trials.db"
    if path.is_file():
        yield Entry("trials", path, "every trial of the tuner", _database_problem(path))


def _database_problem(path: Path) -> str:
    import sqlite3

    try:
        with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as database:
            said = str(database.execute("pragma quick_check").fetchone()[0])
    except sqlite3.Error as error:
        return str(error)
    return "" if said == "ok" else said
