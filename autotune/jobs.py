"""One configuration to compile, and how a worker compiles it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsec.autotune.trial import Built, Rejection
from sparsec.plan.grad_specs import AnySpec
from sparsec.runtime.target import Target
from sparsec.tile.schedule import Schedule, ScheduleError

if TYPE_CHECKING:
    from torch import Tensor

    from sparsec.lower.lowered import Lowered
    from sparsec.plan.plan import Kernel

LONGEST_REASON = 600


@dataclass(frozen=True, slots=True)
class Job:
    """A configuration of a kernel.

    Attributes:
        params: launch parameters by name.
        like: dtype, shape and strides of each of the kernel's buffers, for back ends that compile for those.
        probe: a file with the buffers of a small case, on which the worker runs what it built: a kernel that reads
            out of bounds then costs a worker and not the tuner. None: nothing is run.
        packed: the kernel where it is one of a packed plan, without its nodes; ``params`` are then as it launches.
    """

    spec: AnySpec
    schedule: Schedule
    target: Target
    cache_dir: Path
    params: Mapping[str, int]
    like: Mapping[str, tuple[str, tuple[int, ...], tuple[int, ...]]]
    probe: Path | None = None
    packed: Kernel | None = None

    @property
    def lowered(self) -> Lowered:
        """The programs."""
        from sparsec.lower.registry import lower_kernel
        from sparsec.runtime.kernel import lowered

        return lower_kernel(self.spec, self.schedule) if self.packed is None else lowered(self.packed, self.schedule)[1]


def perform(job: Any) -> Built | Rejection:
    """Run a job in a worker; whatever a compiler throws is a fact about the configuration."""
    began = time.monotonic()
    try:
        built = _compile(job) if isinstance(job, Job) else job()
    except Exception as error:
        return Rejection("illegal" if _is_refusal(error) else "compile", reason(error))
    if isinstance(built, Rejection):
        return built
    return Built(time.monotonic() - began, *built)


def reason(error: BaseException) -> str:
    """An exception as one line; of a long compiler message its end, where the cause stands."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    cause = f" caused by {reason(error.__cause__)}" if error.__cause__ is not None else ""
    return (text if len(text) <= LONGEST_REASON else f"{text[:100]} … {text[-LONGEST_REASON:]}") + cause


def _is_refusal(error: Exception) -> bool:
    """Whether a lowering or printer said in its own words that it cannot do this."""
    return isinstance(error, ScheduleError) or type(error).__name__ in ("TileError", "LaunchError")


def _compile(job: Job) -> tuple[int | None, int | None, int | None] | Rejection:
    if job.target.backend == "triton":
        return _compile_triton(job)
    from sparsec.runtime.launch import build

    lowered = job.lowered
    binds = [(step.program, build(step, job.target, job.cache_dir)) for step in lowered.steps]
    if job.probe is not None:
        buffers = read_probe(job.probe)
        params = _params(job, lowered.params)
        every = {**buffers, **_scratch(params, lowered.scratch)}
        for program, bind in binds:
            bind([every[t.name] for t in program.tensors], params)()
    return None, None, None


def _compile_triton(job: Job) -> tuple[int, int, int] | Rejection:
    """Put the binaries of all programs into Triton's cache; the largest need of each resource."""
    from sparsec.backends.triton.warm import Like, warm

    lowered = job.lowered
    params = _params(job, lowered.params)
    like = {name: Like(*x) for name, x in job.like.items()}
    for name, x in _scratch(params, lowered.scratch, "meta").items():
        like[name] = Like(str(x.dtype).removeprefix("torch."), tuple(x.shape), x.stride())
    found = []
    for step in lowered.steps:
        own = {t.name: like[t.name] for t in step.program.tensors}
        folder = job.cache_dir / "triton"
        found.append(warm(step.program, step.schedule, job.target.arch, own, params, folder))
    shared = max(r.shared for r in found)
    if shared > job.target.shared:
        return Rejection("shared memory", f"needs {shared} bytes of shared memory of {job.target.shared}")
    return max(r.registers for r in found), max(r.spills for r in found), shared


def _params(job: Job, more: tuple[tuple[str, Any], ...]) -> dict[str, int]:
    from sparsec.scalar.evaluate import evaluate

    return {**job.params, **{name: int(evaluate(value, job.params)) for name, value in more}}


def _scratch(params: Mapping[str, int], scratch: tuple[Any, ...], device: str = "cpu") -> dict[str, Tensor]:
    import torch

    from sparsec.scalar.evaluate import evaluate

    sizes = {s.name: [int(evaluate(d, params)) for d in s.shape] for s in scratch}
    return {s.name: torch.empty(sizes[s.name], dtype=getattr(torch, s.dtype), device=device) for s in scratch}


_PROBES: dict[Path, dict[str, Any]] = {}


def read_probe(path: Path) -> dict[str, Any]:
    """The buffers of the case in hand, read once per worker."""
    import torch

    if path not in _PROBES:
        _PROBES.clear()
        _PROBES[path] = torch.load(path, weights_only=True)
    return _PROBES[path]
