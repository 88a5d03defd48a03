"""Compiling a kernel into Triton's cache for arguments that do not exist yet, on a machine whose GPU is left alone.

The launching process then finds the binary under the very key that it looks for: the same source file, argument types,
divisibilities and options. It is a matter of a driver that names the target and of tensors without memory.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparsec.backends.triton.aot import gpu_target
from sparsec.backends.triton.build import arguments, load, options
from sparsec.backends.triton.emit import emit
from sparsec.backends.triton.resources import Resources, of_amd, of_nvidia
from sparsec.tile.language import Program
from sparsec.tile.schedule import Schedule


@dataclass(frozen=True, slots=True)
class Like:
    """What a tensor is like, without its memory; its address is taken to be a multiple of 16."""

    dtype: str
    shape: tuple[int, ...]
    stride: tuple[int, ...]


class _NamedTarget:
    """Stands in for a GPU's driver while kernels are compiled and none is launched."""

    def __init__(self, arch: str) -> None:
        self.target = gpu_target(arch)

    def get_current_target(self) -> Any:
        return self.target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def warm(
    program: Program, schedule: Schedule, arch: str, like: Mapping[str, Like], params: Mapping[str, int], folder: Path
) -> Resources:
    """Compile one program for ``arch`` ("sm_90", …) as ``build.launch`` will ask for it; what the binary needs."""
    import torch
    from triton.runtime.driver import driver

    driver.set_active(_NamedTarget(arch))
    tensors = {
        name: torch.empty_strided(x.shape, x.stride, dtype=getattr(torch, x.dtype), device="meta")
        for name, x in like.items()
    }
    kernel = load(emit(program, schedule), program.name, folder)
    made = kernel.warmup(*arguments(program, schedule, tensors, params), grid=(1,), **options(schedule))
    return _resources(made.asm, int(made.metadata.shared))


def _resources(asm: Mapping[str, Any], shared: int) -> Resources:
    if "cubin" not in asm:
        return of_amd(asm["amdgcn"], shared)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(asm["cubin"])
        file.flush()
        return of_nvidia(Path(file.name), asm["ptx"], shared)
