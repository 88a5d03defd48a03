"""The environment that TVM reads once, when it starts its threads. Nothing here imports sparsec."""

from __future__ import annotations

import os
import sys
from typing import Any


def cores() -> int:
    """The number of cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def load_tvm() -> Any:
    """The module ``tvm``, loaded with a thread per core, no pinning, and the process's own excepthook kept."""
    os.environ.setdefault("TVM_NUM_THREADS", str(cores()))
    os.environ.setdefault("TVM_BIND_THREADS", "0")
    hook = sys.excepthook
    import tvm

    sys.excepthook = hook
    return tvm
