"""The machine in one line, for tables and reports."""

from __future__ import annotations

import os
import platform
from pathlib import Path

BUSY = 1.5
"""Processes per core; one variant's job alone makes 1 or a little more for the next one's."""


def machine(device: str) -> str:
    """The processor or GPU, with what compiles for it."""
    import torch

    if device == "cuda":
        return f"{torch.cuda.get_device_name()}, torch {torch.__version__}, CUDA {torch.version.cuda}"
    return f"{_processor()}, {cores()} cores, {_threads()}, torch {torch.__version__}"


def _threads() -> str:
    """How many threads torch has, and sparsec's kernels where they are given another number."""
    import torch

    from sparsec.backends.tvm.threads import threads

    mine, theirs = threads(), torch.get_num_threads()
    return f"{mine} threads" if mine == theirs else f"{mine} threads of sparsec, {theirs} of torch"


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def load_per_core() -> float:
    """How many processes per core wanted to run during the last minute, this one's threads among them."""
    return os.getloadavg()[0] / cores() if hasattr(os, "getloadavg") else 0.0


def busy(level: float) -> list[str]:
    """A sentence about a machine that others use too; none where it is this job's alone."""
    return (
        []
        if level < BUSY
        else [
            f"{level:.1f} processes per core wanted to run here during the last minute, so times are longer than this "
            "machine needs, and predictions, which are for an idle one, too short"
        ]
    )


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    names = [line for line in info.read_text().splitlines() if line.startswith("model name")] if info.exists() else []
    return names[0].split(":", 1)[1].strip() if names else platform.processor() or platform.machine()
