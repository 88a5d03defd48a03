"""Ahead-of-time compilation in a process of its own, so that a compiler that hangs or dies costs one candidate."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparsec.backends.triton.resources import Resources


class CompileError(RuntimeError):
    """Triton or its assembler refused a kernel; the message is theirs."""


@dataclass(frozen=True, slots=True)
class Job:
    """One kernel to compile.

    Attributes:
        signature: types of the arguments, see ``sparsec.backends.triton.arguments.signature``.
        target: "sm_80", "sm_90", "sm_100", "gfx942", …
    """

    source: str
    name: str
    signature: Mapping[str, str]
    target: str
    warps: int
    stages: int
    registers: int = 0


@dataclass(frozen=True, slots=True)
class Compiled:
    """A compiled kernel: where its binary and assembly lie, what it needs, and the Triton that made it."""

    binary: Path
    assembly: Path
    resources: Resources
    triton: str

    @property
    def text(self) -> str:
        """The assembly: PTX or AMD GCN."""
        return self.assembly.read_text()


def compile_for(job: Job, folder: Path, timeout: float = 120.0) -> Compiled:
    """Compile one kernel. Raises CompileError where that fails or takes longer than ``timeout`` seconds."""
    (made,) = compile_all([job], folder, timeout)
    if isinstance(made, CompileError):
        raise made
    return made


def compile_all(
    jobs: Sequence[Job], folder: Path, timeout: float = 120.0, python_path: str | None = None
) -> list[Compiled | CompileError]:
    """Compile kernels one after another in one process; a failure takes its kernel's place in the list.

    ``folder`` keeps sources and binaries; ``timeout`` is for each kernel; ``python_path`` goes before the process's
    PYTHONPATH, to compile with another Triton.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lines, problem = _work(jobs, folder, timeout * max(len(jobs), 1), python_path)
    made = [_result(json.loads(line)) for line in lines]
    return made + [CompileError(problem) for _ in jobs[len(made) :]]


def _work(jobs: Sequence[Job], folder: Path, timeout: float, python_path: str | None) -> tuple[list[str], str]:
    """The worker's complete lines, and what stopped it."""
    text = json.dumps([_as_json(job, folder) for job in jobs])
    command = [sys.executable, "-m", "sparsec.backends.triton.aot"]
    try:
        done = subprocess.run(
            command, input=text, env=_environment(folder, python_path), capture_output=True, text=True, timeout=timeout
        )
    except subprocess.TimeoutExpired as late:
        out = late.stdout.decode() if isinstance(late.stdout, bytes) else late.stdout or ""
        return out.splitlines(), f"took longer than {timeout:.0f} s"
    return done.stdout.splitlines(), f"the compiler process ended with {done.returncode}: {done.stderr[-2000:]}"


def _as_json(job: Job, folder: Path) -> dict[str, Any]:
    fields = {"source": job.source, "name": job.name, "target": job.target, "warps": job.warps, "stages": job.stages}
    return {**fields, "registers": job.registers, "signature": dict(job.signature), "folder": str(folder)}


def _environment(folder: Path, python_path: str | None) -> dict[str, str]:
    """This process's environment without TRITON_INTERPRET, importing what this process imports."""
    root = str(Path(__file__).resolve().parents[2])
    home = [root] if (Path(root) / "sparsec").is_dir() else []
    paths = [python_path, *home, os.environ.get("PYTHONPATH")]
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    env["PYTHONPATH"] = os.pathsep.join(p for p in paths if p)
    env["TRITON_CACHE_DIR"] = str(folder / ("triton" if python_path is None else f"triton-{Path(python_path).name}"))
    return env


def _result(found: dict[str, Any]) -> Compiled | CompileError:
    if "error" in found:
        return CompileError(found["error"])
    resources = Resources(*(found[name] for name in ("registers", "spills", "shared", "wgmma")))
    return Compiled(Path(found["binary"]), Path(found["assembly"]), resources, found["triton"])
