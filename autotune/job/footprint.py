"""How many bytes a call holds at once beyond its inputs, measured: by torch on a GPU, by the system on Linux CPUs."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from pathlib import Path

STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def peak_bytes(run: Callable[[], object], device: str) -> int | None:
    """The most bytes that one call adds to what was held before it; None where the system does not say.

    On a CPU that is the growth of the resident set, in pages, with whatever else the process touches meanwhile.
    """
    return _gpu(run) if device == "cuda" else _resident(run)


def _gpu(run: Callable[[], object]) -> int:
    import torch

    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def _resident(run: Callable[[], object]) -> int | None:
    if not sys.platform.startswith("linux"):
        return None
    run()
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        RESET.write_text("5")  # the peak starts again from what is resident now
        before = _status("VmRSS")
        run()
        return max(_status("VmHWM") - before, 0)
    except (OSError, AttributeError, KeyError):
        return None


def _status(field: str) -> int:
    """A field of the process's status, in bytes."""
    lines = dict(line.split(":", 1) for line in STATUS.read_text().splitlines() if ":" in line)
    return int(lines[field].split()[0]) * 1024
