"""What ``torch.use_deterministic_algorithms(True)`` asks of a kernel: a schedule whose sums have one order."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from functools import lru_cache

from sparsec.lower.lowered import Lowered
from sparsec.lower.registry import default, lower_kernel
from sparsec.plan.grad_specs import AnySpec
from sparsec.plan.plan import Plan
from sparsec.tile.build import reachable
from sparsec.tile.language import Access
from sparsec.tile.schedule import Schedule


@lru_cache(maxsize=4096)
def ordered(spec: AnySpec, schedule: Schedule) -> bool:
    """Whether a kernel gives the same bits on every run: no program of it adds to memory that others add to."""
    return not adds(lower_kernel(spec, schedule))


def adds(lowered: Lowered) -> bool:
    """Whether some program adds to memory that others add to."""
    return any(
        isinstance(detail, Access) and detail.atomic
        for program in (step.program for step in lowered.steps)
        for node in reachable(program.effects)
        for detail in node.attrs
    )


class OrderError(RuntimeError):
    """A kernel that has no deterministic schedule, where torch was told to use deterministic algorithms only."""


def in_order(spec: AnySpec, found: Schedule, target: str) -> Schedule:
    """``found`` where it is deterministic, else the default. Raises OrderError where that is not either.

    ``torch.use_deterministic_algorithms(True, warn_only=True)`` asks for a warning instead.
    """
    if ordered(spec, found):
        return found
    untuned = default(spec, target)
    if ordered(spec, untuned):
        return untuned
    _refuse(
        f"{spec.name} has no deterministic implementation: gradients of captured tensors are summed by atomic "
        "additions. Fix: ask for other gradients, or torch.use_deterministic_algorithms(True, warn_only=True)"
    )
    return found


def refuse_additions(plan: Plan, schedules: Mapping[str, Schedule], lowered: Mapping[str, Lowered]) -> None:
    """Raises OrderError where programs that a forward relied on add atomically, though their schedules say otherwise.

    Those schedules are of now; a backward that shares work with its forward runs programs of then.
    """
    for kernel in plan.kernels:
        own = lowered.get(kernel.name)
        if own is not None and adds(own) and ordered(kernel.spec, schedules[kernel.name]):
            _refuse(
                f"{kernel.name} shares work with its forward, which ran before deterministic algorithms were asked for"
                ". Fix: ask for them before the forward, or torch.use_deterministic_algorithms(True, warn_only=True)"
            )


def _refuse(said: str) -> None:
    """A refusal, or a warning where torch asks for that."""
    import torch

    if not torch.is_deterministic_algorithms_warn_only_enabled():
        raise OrderError(said)
    warnings.warn(said, stacklevel=3)
