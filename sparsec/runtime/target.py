"""What kernels are built for: a back end and an architecture, with the limits that schedules must respect."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path


class TargetError(ValueError):
    """A target that does not exist or is not available here."""


@dataclass(frozen=True, slots=True)
class Target:
    """A back end on an architecture.

    Attributes:
        backend: "triton", "tvm", or "interpreter": tile programs run by torch, slow and without a compiler.
        arch: "sm_90", "gfx942", …, "llvm" or "cpu".
        shared: bytes of shared memory one program may use (GPUs).
        copy_rate: bytes per second that a large copy moves (read + written), for predictions.
        dot_rate: FLOP per second of half-precision dots (GPUs) or fp32 FMA (CPUs).
        processors: streaming multiprocessors or cores.
    """

    backend: str
    arch: str
    shared: int
    copy_rate: float
    dot_rate: float
    processors: int

    @property
    def name(self) -> str:
        """As it is written: ``triton:sm_90``, ``tvm:llvm``, ``interpreter``."""
        return self.backend if self.backend == "interpreter" else f"{self.backend}:{self.arch}"

    @property
    def chains(self) -> bool:
        """Whether a launch may start while the one before ends."""
        return self.backend == "triton" and self.arch in ("sm_90", "sm_100")

    @property
    def device(self) -> str:
        """The torch device type that its tensors live on."""
        return "cuda" if self.backend == "triton" else "cpu"


GPUS: dict[str, Target] = {
    "sm_80": Target("triton", "sm_80", 163 * 1024, 1.7e12, 250e12, 108),
    "sm_86": Target("triton", "sm_86", 99 * 1024, 0.8e12, 130e12, 84),
    "sm_89": Target("triton", "sm_89", 99 * 1024, 0.85e12, 280e12, 128),
    "sm_90": Target("triton", "sm_90", 227 * 1024, 3.0e12, 600e12, 132),
    "sm_100": Target("triton", "sm_100", 227 * 1024, 6.5e12, 1500e12, 148),
    "gfx942": Target("triton", "gfx942", 64 * 1024, 4.0e12, 700e12, 304),
}


@cache
def cpu() -> Target:
    """This machine's CPU through TVM; rates are of the cores this process may use."""
    import os

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
    return Target("tvm", "llvm", 32 * 1024, 10e9 * cores, core_rate(_cpuinfo()) * cores, cores)


def _cpuinfo() -> str:
    try:
        return Path("/proc/cpuinfo").read_text()
    except OSError:
        return ""


def core_rate(cpuinfo: str) -> float:
    """FLOP per second of one core's fp32 multiply-adds, by its vectors as Linux names them; see docs/cost.md."""
    family = re.search(r"^cpu family\s*: (\d+)$", cpuinfo, re.MULTILINE)
    if "avx512f" in cpuinfo:
        whole = "AuthenticAMD" in cpuinfo and family is not None and int(family[1]) >= _ZEN_5
        return 220e9 if whole else 110e9
    return 60e9 if "avx2" in cpuinfo else 30e9 if cpuinfo else 40e9


_ZEN_5 = 26
"""The first family of AMD's whose cores work on 512 bits at once; those before take two turns."""


INTERPRETER = Target("interpreter", "cpu", 227 * 1024, 10e9, 1e9, 1)
"""Runs tile programs under GPU schedules without a GPU: the third runner, for checks."""


def _here() -> Target:
    """The best target of this machine: its GPU if torch sees one, otherwise its CPU."""
    import torch

    if torch.cuda.is_available():
        arch = _cuda_arch()
        if arch in GPUS:
            return GPUS[arch]
    return cpu()


def _cuda_arch() -> str:
    import torch

    if torch.version.hip:
        return str(torch.cuda.get_device_properties(0).gcnArchName).split(":")[0]
    major, minor = torch.cuda.get_device_capability()
    return f"sm_{major}{minor}"


def find(name: str | Target = "auto") -> Target:
    """The target of this name: "auto", "cpu", "cuda", "interpreter", "tvm:llvm" or "triton:<arch>"."""
    if isinstance(name, Target):
        return name
    if not isinstance(name, str):
        raise TargetError(f"target {name!r} is no name; use 'auto', 'cpu', 'cuda' or 'triton:<arch>'")
    if name == "interpreter":
        return INTERPRETER
    if name == "auto":
        return _here()
    if name in ("cpu", "tvm:llvm", "tvm"):
        return cpu()
    if name in ("cuda", "gpu", "triton"):
        here = _here()
        if here.device != "cuda":
            raise TargetError(
                f"target {name!r}: torch sees no GPU here; use 'cpu', or name an architecture to compile for"
            )
        return here
    arch = name.removeprefix("triton:")
    if arch not in GPUS:
        known = ", ".join(["auto", "cpu", "cuda", "interpreter", "tvm:llvm", *(t.name for t in GPUS.values())])
        raise TargetError(f"target {name!r} is unknown; use one of {known}")
    return GPUS[arch]


def available(target: Target) -> None:
    """Raise unless kernels of this target can run here."""
    if target.backend == "triton" and (here := _here()).name != target.name:
        raise TargetError(f"target {target.name} cannot run here: this machine's best target is {here.name}")
