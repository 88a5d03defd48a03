"""One program built for a target: bound to tensors and launch parameters, it gives a launch that can be repeated."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from sparsec.lower.lowered import Step
from sparsec.runtime.env import Env
from sparsec.runtime.target import Target
from sparsec.tile.scalars import grid_of

if TYPE_CHECKING:
    from torch import Tensor

Run = Callable[[], None]
Bind = Callable[[Sequence["Tensor"], Mapping[str, int]], Run]
"""From tensors in the program's order and parameters by name to a launch; all checks happen before it."""


def build(step: Step, target: Target, cache_dir: Path) -> Bind:
    """Build one program; sources and libraries go under ``cache_dir``."""
    if Env().print_source:
        print(source(step, target))
    if target.backend == "triton":
        return _triton(step, cache_dir / "triton")
    if target.backend == "tvm":
        from sparsec.backends.tvm.build import compile as compile_tvm

        compiled = compile_tvm(step.program, step.schedule, cache_dir / "tvm")
        return lambda tensors, params: partial(compiled, tensors, params)
    return _interpreter(step)


def source(step: Step, target: Target) -> str:
    """The source text of one program for a target."""
    if target.backend == "triton":
        from sparsec.backends.triton.emit import emit as emit_triton

        return emit_triton(step.program, step.schedule)
    if target.backend == "tvm":
        from sparsec.backends.tvm.emit import emit as emit_tvm

        return emit_tvm(step.program, step.schedule)
    from sparsec.tile.printer import to_text

    return to_text(step.program)


def _triton(step: Step, cache_dir: Path) -> Bind:
    """The printed kernel; where a tensor does not allow descriptors, the same kernel with pointers, built then."""
    from sparsec.backends.triton.build import LaunchError, arguments, launch, load
    from sparsec.backends.triton.emit import emit

    program, schedule = step.program, step.schedule
    kernel = load(emit(program, schedule), program.name, cache_dir)
    plain: list[Bind] = []

    def bind(tensors: Sequence[Tensor], params: Mapping[str, int]) -> Run:
        named = {t.name: x for t, x in zip(program.tensors, tensors, strict=True)}
        try:
            args = arguments(program, schedule, named, params)
        except LaunchError:
            if not schedule.descriptors:
                raise
            if not plain:
                plain.append(_triton(Step(program, replace(schedule, descriptors=False)), cache_dir))
            return plain[0](tensors, params)
        return partial(launch, kernel, grid_of(program, params), args, schedule, tensors[0].device)

    return bind


def _interpreter(step: Step) -> Bind:
    from sparsec.tile.interpreter import interpret

    program = step.program

    def bind(tensors: Sequence[Tensor], params: Mapping[str, int]) -> Run:
        return partial(interpret, program, {t.name: x for t, x in zip(program.tensors, tensors, strict=True)}, params)

    return bind
