"""What ``torch.use_deterministic_algorithms(True)`` asks of a kernel: a schedule whose sums have one order."""

from __future__ import annotations

import warnings
from functools import lru_cache

from sparsec.lower.registry import default, lower_kernel
from sparsec.plan.grad_specs import AnySpec
from sparsec.tile.build import reachable
from sparsec.tile.language import Access
from sparsec.tile.schedule import Schedule


@lru_cache(maxsize=4096)
def ordered(spec: AnySpec, schedule: Schedule) -> bool:
    """Whether a kernel gives the same bits on every run: no program of it adds to memory that others add to."""
    programs = [step.program for step in lower_kernel(spec, schedule).steps]
    return not any(
        isinstance(detail, Access) and detail.atomic
        for program in programs
        for node in reachable(program.effects)
        for detail in node.attrs
    )


class OrderError(RuntimeError):
    """A kernel that has no deterministic schedule, where torch was told to use deterministic algorithms only."""


def in_order(spec: AnySpec, found: Schedule, target: str) -> Schedule:
    """``found`` where it is deterministic, else the default. Raises OrderError where that is not either.

    ``torch.use_deterministic_algorithms(True, warn_only=True)`` asks for a warning instead.
    """
    import torch

    if ordered(spec, found):
        return found
    untuned = default(spec, target)
    if ordered(spec, untuned):
        return untuned
    said = (
        f"{spec.name} has no deterministic implementation: gradients of captured tensors are summed by atomic "
        "additions. Fix: ask for other gradients, or torch.use_deterministic_algorithms(True, warn_only=True)"
    )
    if not torch.is_deterministic_algorithms_warn_only_enabled():
        raise OrderError(said)
    warnings.warn(said, stacklevel=2)
    return found
