"""What a compiled kernel needs of a processor: registers, spills, shared memory, from its binary or its assembly."""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Resources:
    """Per-thread and per-program needs.

    Attributes:
        registers: of a thread (vector registers on AMD).
        spills: bytes of a thread's stack; 0 where everything fits into registers.
        shared: bytes of shared memory of a program.
        wgmma: whether it uses Hopper's warp-group matrix instructions.
    """

    registers: int
    spills: int
    shared: int
    wgmma: bool


def of_nvidia(cubin: Path, ptx: str, shared: int) -> Resources:
    """Resources of a cubin, as the ``cuobjdump`` that comes with Triton reports them."""
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    command = [str(tool), "--dump-resource-usage", str(cubin)]
    report = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    return Resources(_number(r"REG:(\d+)", report), _number(r"STACK:(\d+)", report), shared, "wgmma.mma_async" in ptx)


def of_amd(assembly: str, shared: int) -> Resources:
    """Resources that the metadata of AMD assembly names; a spilled register is 4 bytes."""
    spilled = _number(r"\.vgpr_spill_count:\s*(\d+)", assembly)
    return Resources(_number(r"\.vgpr_count:\s*(\d+)", assembly), 4 * spilled, shared, False)


def _number(pattern: str, text: str) -> int:
    found = re.search(pattern, text)
    assert found, f"no {pattern} in {text[:200]!r}"
    return int(found[1])
