"""Kernels of benchmarks built before anything is timed: a call at a small size, in several processes at once.

Kernels have heads and head dims, and are the same for all lengths, so the calls that are timed find them in the cache.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial

import torch

from sparsec.benchmarks import apart
from sparsec.benchmarks.cases import Case
from sparsec.benchmarks.cases_scan import LevelsCase
from sparsec.benchmarks.crossover import Setting, first_step
from sparsec.benchmarks.own import own
from sparsec.benchmarks.registry import cases_named

Report = Callable[[str], None]
TOKENS, ROWS = 4096, 2
"""Of a batch of one row kernels are others: a size of 1 is known to a compiler."""


def shortened(case: Case) -> Case:
    """A case of a few tokens whose kernels are those of the case; its levels are as many as its length asks for."""
    tokens = case.T if isinstance(case, LevelsCase) else min(case.T, TOKENS)
    return replace(case, B=min(case.B, ROWS), T=tokens)


def build(names: Sequence[str], crossing: Setting | None, report: Report) -> None:
    """Run each case, or preset of a crossover's setting, once at a small size; one that fails says so."""
    for name in names:
        try:
            _build(name, crossing)
        except Exception as error:  # what is timed will say it again
            report(f"{name}: not built ahead, {type(error).__name__}: {error}"[:300])


def _build(name: str, crossing: Setting | None) -> None:
    if crossing is not None:
        first_step(name, crossing)()
        return
    (case,) = cases_named((name,))
    short = shortened(case)
    with torch.no_grad():
        own(short, short.inputs(), 0)()


def build_apart(names: Sequence[str], options: Sequence[str], at_once: int, limit: float, report: Report) -> None:
    """The same, every name in a process of its own, so many at a time."""
    with ThreadPoolExecutor(at_once) as pool:
        each = [[name, *options, "--build-only"] for name in names]
        list(pool.map(partial(apart.run, limit=limit, report=report), each))
    report(f"{len(names)} built ahead")
