"""Schedules of decode steps: few queries and many keys, where a forward's tiles would leave most processors idle."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from sparsec.plan.grad_specs import AnySpec
from sparsec.plan.specs import GatheredAttention
from sparsec.runtime.target import Target
from sparsec.tile.schedule import Schedule


def for_steps(spec: AnySpec, schedule: Schedule, target: Target, dims: Mapping[str, int]) -> Schedule:
    """A forward's schedule as one for a few new tokens."""
    if isinstance(spec, GatheredAttention) and schedule.order != "query_outer":
        return replace(schedule, order="query_outer")
    return schedule
