"""The cache folder where it cannot be written: kernels are then built in a folder of this process."""

from __future__ import annotations

import os
import tempfile
import warnings
from functools import cache
from pathlib import Path


def writable(folder: Path) -> bool:
    """Whether files can be made in a folder; it is made if it does not exist."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return os.access(folder, os.W_OK)
    except OSError:
        return False


def usable(folder: Path) -> Path:
    """The folder itself, or a private temporary one with a warning, once per folder, that nothing will be kept."""
    return folder if writable(folder) else _private(folder)


@cache
def _private(folder: Path) -> Path:
    held = tempfile.TemporaryDirectory(prefix="sparsec-")
    _HELD.append(held)
    warnings.warn(
        f"the cache folder {folder} cannot be written: kernels are built anew in each process, and tuned schedules "
        "cannot be kept. Set SPARSEC_CACHE_DIR to a folder that can.",
        stacklevel=4,
    )
    return Path(held.name)


_HELD: list[tempfile.TemporaryDirectory[str]] = []  # removed when the process ends
