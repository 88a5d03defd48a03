"""From a tile program to a kernel that runs on torch tensors, through a cache of shared libraries.

A library is named by source, processor and TVM version and by its own checksum, and rebuilt where that is not its own.
Without a C compiler to link with, kernels are compiled in memory and nothing is cached.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from threading import get_ident
from typing import TYPE_CHECKING, Any

from sparsec.backends.tvm.emit import emit
from sparsec.backends.tvm.pipeline import build, machine, vector_floats, vector_registers
from sparsec.backends.tvm.threads import load_tvm
from sparsec.tile.language import Program
from sparsec.tile.schedule import Schedule

if TYPE_CHECKING:
    from torch import Tensor

SLACK = 1 << 16
"""Elements of the buffer that stands in for an empty tensor, so that clamped reads have something to read."""


class LaunchError(ValueError):
    """Tensors that a kernel cannot take, in one sentence with the numbers."""


class CacheError(OSError):
    """A cache folder that cannot be written, in one sentence."""


@dataclass(frozen=True, slots=True)
class CompiledKernel:
    """A kernel that runs; called with tensors in order and launch parameters by name.

    Attributes:
        library: the shared library in the cache; None where nothing could be linked.
    """

    program: Program
    source: str
    library: Path | None
    function: Callable[..., None]

    def __call__(self, tensors: Sequence[Tensor], params: Mapping[str, int | float]) -> None:
        """Run over the whole grid, on tensors of the program's dtypes and any strides but 1 in the last dimension."""
        views: list[Tensor] = []
        strides: list[int] = []
        for declared, tensor in zip(self.program.tensors, tensors, strict=True):
            _check(declared.name, declared.dtype, declared.rank, tensor)
            views.append(flat(tensor))
            strides += tensor.stride()[:-1] if tensor.numel() else [0] * (declared.rank - 1)
        self.function(*views, *(params[name] for name, _ in self.program.params), *strides)


def compile(program: Program, schedule: Schedule, cache_dir: Path) -> CompiledKernel:
    """The kernel of a program, from the cache if it is there.

    Vectors and register tiles are cut down to what this processor has. Raises TileError for what the CPU cannot do and
    CacheError where a new library cannot be written.
    """
    source = emit(program, fitted(schedule))
    library = library_of(source, Path(cache_dir)) if can_link() else None
    module = build(source) if library is None else load_tvm().runtime.load_module(str(library))
    return CompiledKernel(program, source, library, module["main"])


def fitted(schedule: Schedule) -> Schedule:
    """The schedule with no wider vectors and no more accumulators than this processor has registers for."""
    accumulators = 24 if vector_registers() == 32 else 8
    return replace(
        schedule,
        vector=min(schedule.vector, vector_floats()),
        accumulators=min(schedule.accumulators, accumulators),
    )


def can_link() -> bool:
    """Whether a C compiler is there to link shared libraries."""
    return any(shutil.which(name) for name in ("g++", "c++", "gcc", "cc", "clang++", "clang"))


def library_of(source: str, cache_dir: Path) -> Path:
    """The shared library of a source: the cached one if it is whole, else a new one."""
    key = hashlib.sha256("\n".join((source, machine(), load_tvm().__version__)).encode()).hexdigest()[:24]
    found = next((path for path in sorted(cache_dir.glob(f"{key}_*.so")) if is_whole(path)), None)
    if found is not None:
        return found
    module = build(source)
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        return _export(module, key, cache_dir)
    except OSError as error:
        reason = f"cache folder {cache_dir} cannot be written: {error.strerror}; name another one"
        raise CacheError(reason) from error


def is_whole(library: Path) -> bool:
    """Whether a cached library has the checksum that its name ends in."""
    try:
        content = library.read_bytes()
    except OSError:
        return False
    return hashlib.sha256(content).hexdigest().startswith(library.stem.rpartition("_")[2])


def _export(module: Any, key: str, cache_dir: Path) -> Path:
    """Write a library under a temporary name, then rename it once: readers see all or nothing. Damaged ones go."""
    draft = cache_dir / f"{key}.{os.getpid()}-{get_ident()}.so"
    try:
        module.export_library(str(draft))
        library = cache_dir / f"{key}_{hashlib.sha256(draft.read_bytes()).hexdigest()[:16]}.so"
        draft.replace(library)
    finally:
        draft.unlink(missing_ok=True)
    for other in cache_dir.glob(f"{key}_*.so"):
        if other != library and not is_whole(other):
            other.unlink(missing_ok=True)
    return library


def _check(name: str, dtype: str, rank: int, tensor: Tensor) -> None:
    if str(tensor.dtype) != f"torch.{dtype}" or tensor.device.type != "cpu":
        raise LaunchError(f"{name}: {tensor.dtype} on {tensor.device}; the kernel takes {dtype} on the CPU")
    if tensor.dim() != rank:
        raise LaunchError(f"{name}: shape {tuple(tensor.shape)}; it needs {rank} dimensions")
    if rank and tensor.shape[-1] > 1 and tensor.stride(-1) != 1:
        raise LaunchError(f"{name}: strides {tensor.stride()}; the last one must be 1, use .contiguous()")


def flat(tensor: Tensor) -> Tensor:
    """The memory from a tensor's first element to its last, as one dimension; bfloat16 as its bits."""
    import torch

    if tensor.numel() == 0:
        dtype = torch.int16 if tensor.dtype is torch.bfloat16 else tensor.dtype
        return torch.zeros(2 * SLACK, dtype=dtype, device="cpu")[SLACK:]
    x = tensor.detach()
    extent = 1 + sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True))
    x = x.as_strided((extent,), (1,))
    return x.view(torch.int16) if x.dtype is torch.bfloat16 else x
