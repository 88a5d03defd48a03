"""Compiling the kernels of a plan side by side, in threads: passes, LLVM and ptxas leave Python's lock alone."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from sparsec.backends.triton.build import extras, options
from sparsec.tile.schedule import Schedule

MOST_THREADS = 32


@contextmanager
def together() -> Iterator[bool]:
    """Kernels that ``ahead`` is given in here are compiled in threads, all of them when it ends.

    Says whether this Triton can (3.5 and later). One that does not compile says so when it is launched.
    """
    try:
        from triton.runtime._async_compile import AsyncCompileMode, active_mode
    except ImportError:
        yield False
        return
    if active_mode.get() is not None:
        yield True
        return
    pool = ThreadPoolExecutor(min(MOST_THREADS, len(os.sched_getaffinity(0))))
    with pool, AsyncCompileMode(pool, ignore_errors=True):
        yield True


def ahead(kernel: Any, args: Sequence[Any], schedule: Schedule, chained: bool) -> None:
    """Compile a loaded kernel as ``build.launch`` will ask for it with these arguments, on the current device."""
    kernel.warmup(*args, grid=(1,), **options(schedule), **extras(chained))
