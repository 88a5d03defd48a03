"""One tuner at a time for one kernel: a lock that ends with the process, however it ends."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sparsec.autotune.trial import TuneError


@contextmanager
def alone(folder: Path | None, name: str) -> Iterator[None]:
    """Hold the lock ``<folder>/<name>.lock``; without a folder there is nothing to share. Raises TuneError if taken."""
    if folder is None:
        yield
        return
    import fcntl

    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{name}.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise TuneError(
                f"another process is tuning {name} in {folder}; wait for it, or set SPARSEC_CACHE_DIR to another folder"
            ) from error
        yield
