"""Named kernels under their default schedules as jobs for Triton's ahead-of-time compiler; needs no GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sparsec.backends.triton.arguments import signature
from sparsec.backends.triton.compile import CompileError, Job, compile_all
from sparsec.backends.triton.emit import emit
from sparsec.frontends.preset import preset
from sparsec.lower.registry import default, lower_kernel
from sparsec.plan.grad_specs import AnySpec
from sparsec.runtime.compiled import compile
from sparsec.runtime.target import GPUS
from sparsec.tile.build import reachable
from sparsec.tile.chain import Chain
from sparsec.tile.language import Program, TileOp
from sparsec.tile.schedule import Schedule

ARCHITECTURES = ("sm_90", "sm_80", "sm_100", "gfx942")
"""What kernels are compiled for ahead of time, the one that they are tuned on first."""


def shared_out(names: Iterable[str], arch: str) -> list[str]:
    """The layers that are compiled for an architecture: all for the first, each for one of the others in turn."""
    turn = ARCHITECTURES.index(arch) - 1
    return [name for number, name in enumerate(names) if turn in (-1, number % (len(ARCHITECTURES) - 1))]


@dataclass(frozen=True, slots=True)
class Layer:
    """A preset at the sizes of a real layer.

    Attributes:
        heads: query heads and key/value heads.
        dims: of keys and of values.
    """

    design: str
    knobs: Mapping[str, object]
    heads: tuple[int, int] = (16, 4)
    dims: tuple[int, int] = (128, 128)
    dtype: str = "bfloat16"

    def specs(self) -> list[AnySpec]:
        """The kernels of its plan."""
        made = compile(preset(self.design, **self.knobs), target="interpreter")
        (heads, kv_heads), (dim, value_dim) = self.heads, self.dims
        dims = {"H": heads, "HKV": kv_heads, "D": dim, "DV": value_dim, "DR": dim}
        return [kernel.spec for kernel in made.plan(dims, self.dtype).kernels]


def jobs(spec: AnySpec, arch: str) -> list[tuple[Program, Job]]:
    """The programs of a kernel under its default schedule on an architecture."""
    lowered = lower_kernel(spec, default(spec, f"triton:{arch}"))
    return [(step.program, job(step.program, step.schedule, arch)) for step in lowered.steps]


def job(program: Program, schedule: Schedule, arch: str, chain: Chain | None = None) -> Job:
    """One program to compile."""
    types, stages = signature(program, schedule), schedule.stages
    return Job(emit(program, schedule, chain), program.name, types, arch, schedule.warps, stages, schedule.registers)


def wide_dots(program: Program) -> bool:
    """Whether a program multiplies half-precision tiles of 64 rows or more, as Hopper's warp groups do."""
    dots = [node for node in reachable(program.effects) if node.op is TileOp.DOT]
    return any(d.axes[0].size >= 64 and d.args[0].dtype != "float32" for d in dots)


def unfit(
    layers: Mapping[str, Iterable[AnySpec]], arch: str, folder: Path, wide: Callable[[Program], bool] = wide_dots
) -> dict[str, object]:
    """What does not fit of the kernels of layers by name; ``wide`` says which Hopper multiplies by warp groups."""
    wanted = [
        (f"{name}: {program.name}", wide(program), job)
        for name, specs in layers.items()
        for spec in specs
        for program, job in jobs(spec, arch)
    ]
    return misfits(wanted, arch, folder)


def misfits(wanted: Sequence[tuple[str, bool, Job]], arch: str, folder: Path) -> dict[str, object]:
    """What is wrong with programs (name, whether Hopper multiplies it by warp groups, job): errors, spills, memory."""
    wrong: dict[str, object] = {}
    for (name, wide, _), made in zip(wanted, compile_all([job for _, _, job in wanted], folder), strict=True):
        if isinstance(made, CompileError):
            wrong[name] = made
        elif made.resources.spills or made.resources.shared > GPUS[arch].shared:
            wrong[name] = made.resources
        elif wide and arch == "sm_90" and not made.resources.wgmma:
            wrong[name] = "no wgmma"
    return wrong
