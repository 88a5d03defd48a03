"""One tuner at a time for one kernel: a lock that ends with the process, however it ends."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from sparsec.autotune.trial import TuneError

PAUSE_S = 0.2
"""Between two looks at a lock that is waited for."""


class Locked(TuneError):
    """Another process holds the lock."""


@contextmanager
def alone(folder: Path | None, name: str, wait_s: float = 0.0) -> Iterator[None]:
    """Hold the lock ``<folder>/<name>.lock``; without a folder there is nothing to share.

    Raises Locked if it is taken, after so many seconds, of which a warning tells.
    """
    if folder is None:
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{name}.lock").open("w") as file:
        if not _taken(file) and not _waited(file, name, wait_s):
            raise Locked(
                f"another process is tuning {name} in {folder}; wait for it, or set SPARSEC_CACHE_DIR to another folder"
            )
        yield


@contextmanager
def one_by_one(path: Path) -> Iterator[None]:
    """Processes open ``path`` one after the other; each is done soon, so the others wait.

    Raises TuneError where its folder cannot be written.
    """
    import fcntl

    try:
        file = path.with_name(f"{path.name}.lock").open("w")
    except OSError as error:
        raise TuneError(f"{path} cannot be opened: {error}; check the folder") from error
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _waited(file: IO[str], name: str, wait_s: float) -> bool:
    """Whether the lock came free in time."""
    if wait_s <= 0:
        return False
    warnings.warn(f"another process is tuning {name}; waiting up to {wait_s:.0f} s for it", stacklevel=4)
    ends = time.monotonic() + wait_s
    while time.monotonic() < ends:
        time.sleep(PAUSE_S)
        if _taken(file):
            return True
    return False


def _taken(file: IO[str]) -> bool:
    """Whether the lock is held by this process now."""
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
