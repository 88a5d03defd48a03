"""Building the C++ module once for a Python and a torch, with the compiler that Triton needs too, and loading it."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import warnings
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

SOURCES = ("module.cpp", "table.h", "object.h", "call.h", "launch.h", "tensor.h")
NAME = "sparsec_native"
LIMIT = 120
"""Seconds that a compiler may take."""

PAYLOADS = {"at::Tensor cdata;": [], "c10::MaybeOwned<at::Tensor> cdata;": ["-DSPARSEC_MAYBE_OWNED"]}
"""How torch's header may hold a tensor in its Python object, and what the sources are told of it."""


class BuildError(Exception):
    """Why there is no native module here, in one sentence."""


@lru_cache(maxsize=8)
def native(folder: Path) -> Any:
    """The module, built under ``folder`` if it is not there yet; None where it cannot be had.

    Where a compiler is there and fails, a warning says so.
    """
    try:
        return load(built(folder))
    except subprocess.CalledProcessError as error:
        lines = error.stderr.decode(errors="replace").strip().splitlines() or [str(error)]
        warnings.warn(f"calls are made from Python, microseconds slower: {lines[0]}", stacklevel=2)
    except (BuildError, ImportError, OSError, subprocess.TimeoutExpired):
        pass
    return None


def built(folder: Path) -> Path:
    """The library under ``folder``. Raises BuildError, OSError or SubprocessError."""
    command = [*compiler(), *_flags()]
    digest = hashlib.sha256(" ".join([*command, _torch_version(), sys.version]).encode())
    here = Path(__file__).parent
    for name in SOURCES:
        digest.update((here / name).read_bytes())
    path = folder / f"{NAME}_{digest.hexdigest()[:16]}" / f"{NAME}{sysconfig.get_config_var('EXT_SUFFIX')}"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as drafts:  # process numbers repeat on a shared folder
            draft = Path(drafts) / path.name
            subprocess.run(
                [*command, str(here / SOURCES[0]), "-o", str(draft), *_libraries()],
                check=True, capture_output=True, timeout=LIMIT,
            )  # fmt: skip
            draft.replace(path)
    return path


def load(path: Path) -> Any:
    """The module of a library, which has read a tensor rightly. Raises ImportError, BuildError."""
    import torch

    spec = importlib.util.spec_from_file_location(NAME, path)
    if spec is None or spec.loader is None:
        raise BuildError(f"{path} is no library of this Python")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    probe = torch.empty(3, device="cpu")
    if module.pointer(probe) != probe.data_ptr():
        raise BuildError("torch holds tensors otherwise than its header says")
    return module


def compiler() -> Sequence[str]:
    """The command of a C++ compiler. Raises BuildError."""
    given = os.environ.get("CXX")
    found = given.split() if given else [path for name in ("g++", "clang++", "c++") if (path := shutil.which(name))][:1]
    if not found:
        raise BuildError("there is no C++ compiler; set CXX")
    return found


def _flags() -> list[str]:
    header = (_torch() / "include/torch/csrc/autograd/python_variable.h").read_text()
    payload = [flags for text, flags in PAYLOADS.items() if f"  {text}" in header]
    if len(payload) != 1:
        raise BuildError("torch holds a tensor in its Python object in a way that is not known")
    includes = [_torch() / "include", Path(sysconfig.get_paths()["include"])]
    cuda = ["-DSPARSEC_CUDA"] if _has_cuda() else []
    return ["-O2", "-std=c++20", "-shared", "-fPIC", "-w", *payload[0], *cuda, *(f"-I{path}" for path in includes)]


def _libraries() -> list[str]:
    names = ["torch_python", "torch_cpu", "c10", *(["torch_cuda", "c10_cuda"] if _has_cuda() else [])]
    return [f"-L{_torch() / 'lib'}", *(f"-l{name}" for name in names)]


def _has_cuda() -> bool:
    return (_torch() / "lib/libtorch_cuda.so").exists()


def _torch() -> Path:
    import torch

    return Path(torch.__file__).parent


def _torch_version() -> str:
    import torch

    return f"{torch.__version__} {torch.version.git_version}"
