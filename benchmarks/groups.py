"""Groups of cases that one word names: the rows of a table that is taken in one run."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import torch

from sparsec.benchmarks.cases import Case
from sparsec.benchmarks.cases_lola import LolaCase
from sparsec.benchmarks.cases_rsa import RsaCase
from sparsec.benchmarks.cases_scan import LevelsCase, ScanCase
from sparsec.benchmarks.cases_sse import SseCase


def group_of(case: Case) -> str:
    """The group of a case of a GPU: `recurrences`, `routed` states or `levels` beside plain passes, or `attention`."""
    if case.device != "cuda":
        return ""
    if isinstance(case, LevelsCase):
        return "levels"
    if isinstance(case, ScanCase | LolaCase):
        return "recurrences"
    return "routed" if isinstance(case, SseCase | RsaCase) else "attention"


def groups(cases: Iterable[Case]) -> dict[str, tuple[str, ...]]:
    """The names of cases by group; `states` has those of `recurrences`, `routed` and `levels`."""
    known = tuple(cases)
    own = {
        g: tuple(c.name for c in known if group_of(c) == g) for g in ("attention", "recurrences", "routed", "levels")
    }
    return own | {"states": own["recurrences"] + own["routed"] + own["levels"]}


def small(case: Case) -> Case:
    """The case at a few tokens and heads in fp32 on the CPU, where it shows that it runs and is right."""
    kv_heads = 2 if case.group == 1 else 1
    if isinstance(case, LolaCase):
        case = replace(case, window=32, keep=16, chunk=16)
    return replace(case, B=1, H=2, HKV=kv_heads, T=256, D=16, device="cpu", dtype=torch.float32)
