"""Every environment variable that sparsec reads, with its meaning; a wrong value is an error."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path


class EnvError(ValueError):
    """An environment variable with a value that it does not take."""


def _flag(name: str, default: str = "0") -> bool:
    value = os.environ.get(name, default)
    if value not in ("0", "1", ""):
        raise EnvError(f"{name}={value!r}: use 1 to switch it on or 0 to switch it off")
    return value == "1"


def _cache_dir() -> Path:
    if given := os.environ.get("SPARSEC_CACHE_DIR"):
        return Path(given).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "sparsec"


@dataclass(frozen=True, slots=True)
class Env:
    """The settings of this process, read when it is made."""

    cache_dir: Path = field(default_factory=_cache_dir)
    """SPARSEC_CACHE_DIR: where built kernels and tuned records live; else $XDG_CACHE_HOME/sparsec."""

    print_ir: bool = field(default_factory=lambda: _flag("SPARSEC_PRINT_IR"))
    """SPARSEC_PRINT_IR: print the graph after every pass that changed it."""

    print_source: bool = field(default_factory=lambda: _flag("SPARSEC_PRINT_SOURCE"))
    """SPARSEC_PRINT_SOURCE: print the source of every kernel that is built."""

    early_launch: bool = field(default_factory=lambda: _flag("SPARSEC_EARLY_LAUNCH", "1"))
    """SPARSEC_EARLY_LAUNCH: 0 lets kernels of a decode step start when the one before has ended; else, on Hopper and
    later, they start while it ends."""

    check_values: bool = field(default_factory=lambda: _flag("SPARSEC_CHECK_VALUES"))
    """SPARSEC_CHECK_VALUES: on a GPU too, read the values of cu_seqlens before a packed call, which waits for them."""

    packed_chunks: bool = field(default_factory=lambda: _flag("SPARSEC_PACKED_CHUNKS"))
    """SPARSEC_PACKED_CHUNKS: packed documents go by chunks wherever one sequence does, also where no GPU timed them."""

    python_launches: bool = field(default_factory=lambda: _flag("SPARSEC_PYTHON_LAUNCHES"))
    """SPARSEC_PYTHON_LAUNCHES: make repeated calls from Python, without the C++ module that is built for them."""

    work_apart: bool = field(default_factory=lambda: _flag("SPARSEC_WORK_APART"))
    """SPARSEC_WORK_APART: every kernel of a plan does all of its own work, also what another one of them does."""
