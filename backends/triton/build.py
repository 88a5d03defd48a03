"""From printed source to a kernel that runs: import it from a file, give it arguments, launch it."""

from __future__ import annotations

import hashlib
import importlib.util
import os
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from sparsec.backends.triton.address import stride_limits
from sparsec.backends.triton.again import Again, Relaunch, known, nothing
from sparsec.backends.triton.arguments import descriptor_arguments, moved_rows
from sparsec.backends.triton.box import Box
from sparsec.backends.triton.descriptors import Descriptor, descriptor_refusal
from sparsec.backends.triton.gluon.turns import GROUP_WARPS
from sparsec.tile.language import Program
from sparsec.tile.schedule import Schedule

if TYPE_CHECKING:
    import torch


MOST_PROGRAMS = 65535
"""Of CUDA and HIP, in all dimensions of a grid but the first."""


class LaunchError(ValueError):
    """Tensors that a kernel cannot take, in one sentence with the numbers."""


def load(source: str, name: str, folder: Path) -> Any:
    """The kernel ``name`` of a source, imported from a file in ``folder`` so that Triton and tracebacks can read it."""
    digest = hashlib.sha256(source.encode()).hexdigest()[:16]
    path = folder / f"{name}_{digest}.py"
    if not path.exists() or path.read_bytes() != source.encode():
        folder.mkdir(parents=True, exist_ok=True)
        draft = path.with_suffix(f".{os.getpid()}")
        draft.write_text(source)
        draft.replace(path)
    return getattr(_module(path), name)


def _module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def arguments(
    program: Program,
    schedule: Schedule,
    tensors: Mapping[str, torch.Tensor],
    params: Mapping[str, int | float],
) -> list[Any]:
    """A kernel's arguments in order: tensors, parameters, strides, descriptors. Raises LaunchError for misfits."""
    given = [tensors[t.name] for t in program.tensors]
    strides = {
        f"{t.name}_s{d}": x.stride(d) for t, x in zip(program.tensors, given, strict=True) for d in range(t.rank)
    }
    for t, x in zip(program.tensors, given, strict=True):
        if x.dim() != t.rank or (t.rank and x.stride(-1) != 1 and x.shape[-1] > 1):
            raise LaunchError(
                f"{t.name}: shape {tuple(x.shape)}, strides {x.stride()}; it needs {t.rank} dimensions, the last dense"
            )
    limits, wanted, moved = _needs(program, schedule)
    if moved is not None and (refusal := _unfit(moved, tensors[moved])):
        raise LaunchError(refusal)
    for name, limit in limits.items():
        if strides[name] > limit:
            raise LaunchError(f"{name} is {strides[name]}; offsets inside a tile fit 32 bits up to {limit}")
    made = [descriptor(d, tensors[d.tensor.name], params) for d in wanted]
    return [*given, *(params[name] for name, _ in program.params), *(strides[s] for s in program.stride_params), *made]


@lru_cache(maxsize=4096)
def _needs(program: Program, schedule: Schedule) -> tuple[dict[str, int], tuple[Descriptor, ...], str | None]:
    """Limits of strides, descriptors, and whose rows are copied in pieces."""
    return stride_limits(program), descriptor_arguments(program, schedule), moved_rows(program, schedule)


def _unfit(name: str, tensor: torch.Tensor) -> str | None:
    """Why a tensor's rows cannot be copied in pieces of 16 bytes."""
    size = tensor.element_size()
    if tensor.data_ptr() % 16 == 0 and all(s * size % 16 == 0 for s in tensor.stride()[:-1]):
        return None
    return f"{name}: address {tensor.data_ptr()}, strides {tensor.stride()}; rows are copied in pieces of 16 bytes"


def descriptor(wanted: Descriptor, tensor: torch.Tensor, params: Mapping[str, int | float]) -> Any:
    """A host-side TMA descriptor of a tensor. Raises LaunchError where the tensor does not allow one."""
    if refusal := descriptor_refusal(wanted, tensor, {k: int(v) for k, v in params.items()}):
        raise LaunchError(refusal)
    shape, strides = [tensor.shape[d] for d in wanted.dims], [tensor.stride(d) for d in wanted.dims]
    if wanted.swizzle:
        return _gluon(wanted, tensor, shape, strides)
    from triton.tools.tensor_descriptor import TensorDescriptor

    return TensorDescriptor(tensor, shape, strides, list(wanted.block))


def _gluon(wanted: Descriptor, tensor: torch.Tensor, shape: list[int], strides: list[int]) -> Any:
    from triton.experimental.gluon.language import NVMMASharedLayout
    from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

    layout = NVMMASharedLayout(wanted.swizzle, 8 * tensor.element_size(), len(shape))
    return TensorDescriptor(tensor, shape, strides, list(wanted.block), layout)


def launch(
    kernel: Any, grid: Sequence[int], args: Sequence[Any], schedule: Schedule, device: torch.device | None = None,
    chained: bool = False,
) -> Any:  # fmt: skip
    """Run a loaded kernel over its grid on the current stream of ``device``; what Triton compiled for it.

    An empty grid does nothing and gives None. A ``chained`` kernel is one printed so. Raises LaunchError for a grid
    that no GPU takes.
    """
    import torch

    if 0 in grid:
        return None
    if max(grid[1:], default=0) > MOST_PROGRAMS:
        rule = f"a GPU takes {MOST_PROGRAMS} programs in the second and third dimension"
        raise LaunchError(f"a grid of {tuple(grid)}: {rule}; give fewer sequences or heads at a time")
    if device is None or device.type != "cuda":
        return kernel[tuple(grid)](*args, **options(schedule))
    with torch.cuda.device(device):
        return kernel[tuple(grid)](*args, **options(schedule), **extras(chained))


def relaunch(
    program: Program, schedule: Schedule, compiled: Any, grid: Sequence[int], args: Sequence[Any]
) -> Again | None:
    """Later launches of what ``launch`` gave for these arguments, on other addresses that 16 divides.

    None where there is no compiled kernel (Triton's interpreter), or a Triton that launches otherwise.
    """
    if 0 in grid:
        return nothing
    if not hasattr(compiled, "packed_metadata") or not known():
        return None
    _, wanted, _ = _needs(program, schedule)
    first = len(args) - len(wanted)
    places = [program.tensors.index(d.tensor) for d in wanted]
    boxes = [Box(place, made) for place, made in zip(places, args[first:], strict=True)]
    return Relaunch(compiled, grid, args[len(program.tensors) : first], boxes)


def extras(chained: bool) -> dict[str, Any]:
    """What a launch on a GPU is told of a kernel that begins while the one before ends."""
    return {"launch_pdl": True} if chained else {}


def options(schedule: Schedule) -> dict[str, Any]:
    """What Triton is told beside a kernel's arguments."""
    warps = GROUP_WARPS if schedule.has_roles else schedule.warps
    found: dict[str, Any] = {"num_warps": warps, "num_stages": schedule.stages, "enable_fp_fusion": True}
    return {**found, "maxnreg": schedule.registers} if schedule.registers else found
