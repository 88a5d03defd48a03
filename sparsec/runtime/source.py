"""The sources of a compiled variant's kernels, for people to read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from sparsec.runtime import launch
from sparsec.runtime.across import programs

if TYPE_CHECKING:
    from sparsec.runtime.compiled import Compiled


def source(compiled: Compiled, dims: Mapping[str, int], dtype: str) -> str:
    """All programs of the plan for these dims, each under a heading."""
    (plan, lowered), parts = programs(compiled, compiled.plan(dims, dtype), dims), []
    for kernel in plan.kernels:
        schedule = compiled.schedule(kernel, dims)
        for step in lowered[kernel.name].steps:
            heading = f"# {kernel.name}: {step.program.name} for {compiled.target.name}\n# {schedule}\n"
            parts.append(heading + launch.source(step, compiled.target))
    return "\n\n".join(parts)
