"""One program built for a target: bound to tensors and launch parameters, it gives a launch that can be repeated."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsec.lower.lowered import Step
from sparsec.runtime.env import Env
from sparsec.runtime.target import Target
from sparsec.tile.scalars import grid_of

if TYPE_CHECKING:
    from torch import Tensor

Run = Callable[[], Any]

Again = Callable[[Sequence[Any], int], Any]
"""Launches on other memory of the same shapes and strides: addresses (GPUs) or flat tensors (the CPU), and a stream."""


class Bind:
    """From tensors in the program's order and parameters by name to a launch; all checks happen before it."""

    def __call__(self, tensors: Sequence[Tensor], params: Mapping[str, int]) -> Run:
        """A launch on these tensors that can be repeated."""
        raise NotImplementedError

    def ahead(self, tensors: Sequence[Tensor], params: Mapping[str, int]) -> None:
        """Have compiled what these arguments need, where that is done at a launch; nothing is launched."""

    @property
    def waits(self) -> bool:
        """Whether its first launch compiles."""
        return False

    def learn(self, tensors: Sequence[Tensor], params: Mapping[str, int]) -> Again | None:
        """Launch once, and give what launches on other memory without any check; None where there is no such thing."""
        self(tensors, params)()
        return None


def build(step: Step, target: Target, cache_dir: Path, plain: Callable[[], Step] | None = None) -> Bind:
    """Build one program; sources and libraries go under ``cache_dir``.

    ``plain`` gives what runs where a tensor allows no descriptor, if not the same program by pointers.
    """
    if Env().print_source:
        print(source(step, target))
    if target.backend == "triton":
        return _Triton(step, cache_dir / "triton", plain)
    return _Tvm(step, cache_dir / "tvm") if target.backend == "tvm" else _Interpreter(step)


def source(step: Step, target: Target) -> str:
    """The source text of one program for a target."""
    if target.backend == "triton":
        from sparsec.backends.triton.emit import emit as emit_triton

        return emit_triton(step.program, step.schedule, step.chain)
    if target.backend == "tvm":
        from sparsec.backends.tvm.emit import emit as emit_tvm

        return emit_tvm(step.program, step.schedule)
    from sparsec.tile.printer import to_text

    return to_text(step.program)


class _Triton(Bind):
    """The printed kernel; where a tensor allows no descriptor, ``plain`` or the same by pointers, built then."""

    def __init__(self, step: Step, cache_dir: Path, plain: Callable[[], Step] | None = None) -> None:
        from sparsec.backends.triton.build import load
        from sparsec.backends.triton.emit import emit

        self.program, self.schedule, self.cache_dir = step.program, step.schedule, cache_dir
        self.chain = step.chain
        self.kernel = load(emit(step.program, step.schedule, step.chain), step.program.name, cache_dir)
        alike = replace(step.schedule, descriptors=False, warps=1 << step.schedule.warps.bit_length() - 1)
        self._other = plain or partial(Step, step.program, alike, chain=step.chain)
        self._plain: _Triton | None = None
        self._known = False

    @property
    def waits(self) -> bool:
        return not self._known

    def ahead(self, tensors: Sequence[Tensor], params: Mapping[str, int]) -> None:
        from sparsec.backends.triton.together import ahead

        self._known = True
        bound, args = self._arguments(tensors, params)
        if 0 not in grid_of(bound.program, params):
            ahead(bound.kernel, args, bound.schedule, bound.chain is not None)

    def __call__(self, tensors: Sequence[Tensor], params: Mapping[str, int]) -> Run:
        from sparsec.backends.triton.build import launch

        bound, args = self._arguments(tensors, params)
        grid = grid_of(bound.program, params)
        return partial(launch, bound.kernel, grid, args, bound.schedule, tensors[0].device, bound.chain is not None)

    def learn(self, tensors: Sequence[Tensor], params: Mapping[str, int]) -> Again | None:
        from sparsec.backends.triton.build import launch, relaunch

        bound, args = self._arguments(tensors, params)
        grid = grid_of(bound.program, params)
        compiled = launch(bound.kernel, grid, args, bound.schedule, tensors[0].device, bound.chain is not None)
        return relaunch(bound.program, bound.schedule, compiled, grid, args)

    def _arguments(self, tensors: Sequence[Tensor], params: Mapping[str, int]) -> tuple[_Triton, list[Any]]:
        """The kernel that takes these tensors, and its arguments."""
        from sparsec.backends.triton.build import LaunchError, arguments

        named = {t.name: x for t, x in zip(self.program.tensors, tensors, strict=True)}
        try:
            return self, arguments(self.program, self.schedule, named, params)
        except LaunchError:
            if not self.schedule.descriptors:
                raise
        if self._plain is None:
            self._plain = _Triton(self._other(), self.cache_dir)
        return self._plain._arguments(tensors, params)


class _Tvm(Bind):
    """A function of flat tensors, parameters and strides."""

    def __init__(self, step: Step, cache_dir: Path) -> None:
        from sparsec.backends.tvm.build import compile as compile_tvm

        self.compiled = compile_tvm(step.program, step.schedule, cache_dir)

    def __call__(self, tensors: Sequence[Tensor], params: Mapping[str, int]) -> Run:
        return partial(self.compiled, tensors, params)

    def learn(self, tensors: Sequence[Tensor], params: Mapping[str, int]) -> Again | None:
        self.compiled(tensors, params)
        if any(x.numel() == 0 for x in tensors):
            return None
        function, names = self.compiled.function, self.compiled.program.params
        rest = (*(params[name] for name, _ in names), *(s for x in tensors for s in x.stride()[:-1]))
        return lambda flat, stream: function(*flat, *rest)


class _Interpreter(Bind):
    def __init__(self, step: Step) -> None:
        self.program = step.program

    def __call__(self, tensors: Sequence[Tensor], params: Mapping[str, int]) -> Run:
        from sparsec.tile.interpreter import interpret

        named = {t.name: x for t, x in zip(self.program.tensors, tensors, strict=True)}
        return partial(interpret, self.program, named, params)
