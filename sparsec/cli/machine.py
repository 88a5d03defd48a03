"""What the doctor looks at, one function per subject; each gives a finding in a sentence and whether it is well."""

from __future__ import annotations

import os
import platform
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

State = Literal["ok", "note", "warn"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One subject: "ok", "note" (something is absent that can be done without) or "warn"."""

    subject: str
    state: State
    finding: str


def findings() -> list[Finding]:
    """Every subject in order."""
    return [look() for look in SUBJECTS]


def python() -> Finding:
    """The interpreter and the machine."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return Finding("machine", "ok", f"Python {platform.python_version()}, {platform.platform()}, {cores} cores")


def packages() -> Finding:
    """Versions of what sparsec builds on."""
    names = ("sparsec", "torch", "triton", "apache-tvm", "sympy", "optuna", "networkx")
    found = {name: installed(name) for name in names}
    missing = [name for name, known in found.items() if known is None and name != "sparsec"]
    said = ", ".join(f"{name} {known or 'missing'}" for name, known in found.items())
    return Finding("packages", "warn" if missing else "ok", said)


def installed(name: str) -> str | None:
    """The version of an installed distribution."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def gpu() -> Finding:
    """The GPU that torch sees."""
    import torch

    if not torch.cuda.is_available():
        return Finding("GPU", "note", "torch sees none; kernels run on the CPU, and compile for GPUs without one")
    name, (major, minor) = torch.cuda.get_device_name(), torch.cuda.get_device_capability()
    return Finding("GPU", "ok", f"{name}, sm_{major}{minor}, CUDA {torch.version.cuda}")


def targets() -> Finding:
    """The target that `auto` means here."""
    from sparsec.runtime.target import GPUS, find

    others = ", ".join(f"triton:{arch}" for arch in GPUS)
    return Finding("targets", "ok", f"auto is {find('auto').name}; interpreter runs anywhere; compiles for {others}")


def cpu_compiler() -> Finding:
    """Whether CPU kernels can be linked and kept."""
    from sparsec.backends.tvm.build import can_link

    if installed("apache-tvm") is None:
        return Finding("CPU kernels", "warn", "apache-tvm is missing; install it, or use target interpreter")
    if not can_link():
        return Finding("CPU kernels", "note", "no C compiler found: kernels are compiled anew in every process")
    linker = next(name for name in ("g++", "c++", "gcc", "cc", "clang++", "clang") if shutil.which(name))
    return Finding("CPU kernels", "ok", f"linked with {linker} and kept in the cache")


HOPPER_FAULTS = (3, 4), (3, 7, 0)
"""Triton from 3.4 to 3.7.0: on Hopper a dot whose operands come from shared memory may be hoisted over its wait."""


def miscompiles() -> Finding:
    """Whether the known Hopper miscompiles of Triton concern this machine."""
    have = installed("triton")
    if have is None:
        return Finding("Triton", "note", "not installed; GPU targets need it")
    low, high = HOPPER_FAULTS
    numbers = tuple(int(part) for part in have.split("+")[0].split(".")[:3] if part.isdigit())
    if not low <= numbers <= high:
        return Finding("Triton", "ok", f"{have} is outside 3.4 to 3.7.0, which miscompile some kernels on Hopper")
    return _concerned(have)


def _concerned(have: str) -> Finding:
    import torch

    hopper = torch.cuda.is_available() and torch.cuda.get_device_capability()[0] == 9
    said = f"{have} is among 3.4 to 3.7.0, which miscompile some kernels on Hopper"
    if not hopper:
        return Finding("Triton", "ok", f"{said}; this machine has no Hopper GPU")
    return Finding(
        "Triton", "warn", f"{said}: `sparsec check … --target cuda` proves a kernel here; tuning always does"
    )


def patterns() -> Finding:
    """What minimal cases of the known miscompiles compute on this machine's GPU."""
    import torch

    from sparsec.cli.faults import PATTERNS, faults, settings

    known = "; ".join(f"{name}: {what}" for name, what in PATTERNS.items())
    if installed("triton") is None:
        return Finding("miscompiles", "note", f"not run, Triton is not installed: {known}")
    if not torch.cuda.is_available() or torch.version.hip:
        return Finding("miscompiles", "note", f"not run, there is no NVIDIA GPU here: {known}")
    wanted = settings()
    wrong = faults(wanted)
    if not wrong:
        return Finding("miscompiles", "ok", f"{len(PATTERNS)} known patterns in {len(wanted)} settings: all right")
    said = "; ".join(map(str, wrong[:8])) + (f"; and {len(wrong) - 8} more" if len(wrong) > 8 else "")
    advice = "tuned schedules are admitted only after their gradients were checked here"
    return Finding("miscompiles", "warn", f"this machine is affected, {len(wrong)} of {len(wanted)}: {said}. {advice}")


def cache() -> Finding:
    """Whether the cache folder can be written, and what it holds is what was written."""
    from sparsec.runtime.env import Env

    folder = Env().cache_dir
    problem = unwritable(folder)
    if problem:
        return Finding("cache", "warn", f"{folder} {problem}: kernels are built anew and tuning cannot be kept")
    files = [path for path in folder.rglob("*") if path.is_file()] if folder.exists() else []
    size = sum(path.stat().st_size for path in files)
    said = f"{folder}: {len(files)} files, {size / 2**20:.1f} MiB"
    wrong = damage(folder)
    return Finding("cache", "warn" if wrong else "ok", f"{said}, {wrong or 'intact'}")


def damage(folder: Path) -> str:
    """What `sparsec cache verify` finds wrong in a cache folder, "" if it is intact."""
    from sparsec.cli.cached import entries

    try:
        count = sum(bool(entry.problem) for entry in entries(folder))
    except OSError as error:
        return f"not verified ({error.strerror})"
    return f"{count} corrupt: `sparsec cache verify` names them, and they are rebuilt when used" if count else ""


def unwritable(folder: Path) -> str | None:
    """Why a folder cannot be written, or None; its nearest parent answers where it is not there yet."""
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    if not existing.is_dir():
        return f"is under {existing}, which is a file"
    try:
        with tempfile.TemporaryFile(dir=existing):
            return None
    except OSError as error:
        return f"is not writable ({error.strerror})"


SUBJECTS: tuple[Callable[[], Finding], ...] = (
    python, packages, gpu, targets, cpu_compiler, miscompiles, patterns, cache,
)  # fmt: skip
