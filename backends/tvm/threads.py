"""The environment that TVM reads once, when it starts its threads. Nothing here imports sparsec."""

from __future__ import annotations

import os
import sys
from typing import Any


def cores() -> int:
    """The number of cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def threads() -> int:
    """Threads of a kernel: what TVM_NUM_THREADS or OMP_NUM_THREADS asks for, as torch does, else one per core."""
    asked = (os.environ.get(name, "").split(",")[0] for name in ("TVM_NUM_THREADS", "OMP_NUM_THREADS"))
    return next((int(n) for n in asked if n.isdecimal() and int(n)), cores())


def load_tvm() -> Any:
    """The module ``tvm``, loaded with as many threads as ``threads`` says, no pinning, and the excepthook kept."""
    os.environ.setdefault("TVM_NUM_THREADS", str(threads()))
    os.environ.setdefault("TVM_BIND_THREADS", "0")
    hook = sys.excepthook
    import tvm

    sys.excepthook = hook
    return tvm
