"""What a figure was taken on: processor, driver, clocks and the versions of everything that compiles or runs."""

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from sparsec.backends.tvm.threads import threads

PACKAGES = ("torch", "triton", "apache-tvm", "fla-core", "optuna", "numpy", "sparsec")
GPU_FIELDS = ("driver_version", "clocks.sm", "clocks.max.sm", "clocks.mem", "power.limit", "temperature.gpu")

Record = dict[str, object]


def hardware(device: str) -> Record:
    """The record of this machine that goes into every row."""
    record: Record = {"python": platform.python_version(), "platform": platform.platform(), "packages": versions()}
    record |= {"cpu": cpu_model(), "cores": len(os.sched_getaffinity(0)), "torch_threads": torch.get_num_threads()}
    record |= {"tvm_threads": threads()}
    return record | gpu() if device == "cuda" else record


def versions() -> dict[str, str | None]:
    """Installed version of each package that matters, None where it is absent."""
    return {name: _version(name) for name in PACKAGES}


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def cpu_model() -> str:
    """The processor's name as Linux gives it, else as Python does."""
    info = Path("/proc/cpuinfo")
    names = [line for line in info.read_text().splitlines() if line.startswith("model name")] if info.exists() else []
    return names[0].split(":", 1)[1].strip() if names else platform.processor()


def gpu() -> Record:
    """Name, size, CUDA version, driver and clocks of the current GPU; clocks as they stand at the call."""
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    record: Record = {
        "gpu": properties.name,
        "multiprocessors": properties.multi_processor_count,
        "capability": f"{properties.major}.{properties.minor}",
        "memory_gib": round(properties.total_memory / 2**30, 1),
        "cuda": torch.version.cuda,
    }
    return record | _nvidia_smi()


def _nvidia_smi() -> Record:
    """Fields that only the driver's tool knows; empty without it."""
    query = ["nvidia-smi", f"--query-gpu={','.join(GPU_FIELDS)}", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return {}
    return dict(zip(GPU_FIELDS, (value.strip() for value in answer.splitlines()[0].split(",")), strict=False))
