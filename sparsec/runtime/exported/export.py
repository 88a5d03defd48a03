"""One readable file per variant: every kernel of its plan, a launcher that allocates the buffers, and a self-check.

The file runs where sparsec is not installed. Heads and head dims are fixed, lengths and batch are free.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping

from sparsec.runtime.compiled import Compiled
from sparsec.runtime.exported.check import SelfCheck, check_text
from sparsec.runtime.exported.kernels import host_imports, host_text, kernels_text
from sparsec.runtime.exported.module import Exported, named
from sparsec.runtime.exported.packed import PackedFile, run_packed_text
from sparsec.runtime.exported.run import run_text
from sparsec.runtime.target import TargetError

BACKENDS = ("triton", "tvm")


def export(compiled: Compiled, dims: Mapping[str, int], dtype: str, check: SelfCheck, packed: bool = False) -> str:
    """The text of a file that computes a variant at these heads and head dims in ``dtype``, and checks itself.

    Args:
        packed: ``run`` takes documents that follow one another, with ``cu_seqlens``.
    Raises:
        TargetError: a target that has no source of its own.
        PlanError: a declaration that cannot be packed.
    """
    target = compiled.target
    if target.backend not in BACKENDS:
        raise TargetError(f"target {target.name} has no source to export: use triton:<arch> or tvm:llvm")
    file = (PackedFile if packed else Exported)(compiled, dict(dims), dtype)
    launcher = run_packed_text(file) if isinstance(file, PackedFile) else run_text(file)
    parts = [heading(file), imports(file), kernels_text(file), host_text(file), launcher, check_text(file, check)]
    return "\n\n\n".join(part.strip("\n") for part in parts) + "\n"


def heading(file: Exported) -> str:
    """The docstring: what it computes, what it needs, how it is used, the declaration."""
    variant, backend = file.variant, file.target.backend
    fixed = ", ".join(f"{n} = {d}" for n, d in sorted(file.dims.items()) if n not in file.free)
    needs = "torch and triton" if backend == "triton" else "torch and apache-tvm"
    free = "documents" if isinstance(file, PackedFile) else "lengths and batch"
    lines = [
        f'"""{variant.name} for {file.target.name} in {file.dtype} with {fixed}.',
        "",
        f"Written by sparsec {version()}, which it does not need; it needs {needs}.",
        f"`run({', '.join(f'{named(n)}=…' for n in arguments(file))})` computes it for any {free}.",
        "It is for inference only: it computes no gradients.",
        "`python <this file>` checks it against results of the fp64 oracle that are recorded below.",
        *by_pointers(file),
        "",
        variant.text().replace("\\", "\\\\").rstrip(),
        '"""',
    ]
    return "\n".join(lines)


def arguments(file: Exported) -> list[str]:
    """What ``run`` takes."""
    return [*file.variant.inputs, *(["cu_seqlens"] if isinstance(file, PackedFile) else [])]


def by_pointers(file: Exported) -> list[str]:
    """What a reader must know of kernels that sparsec itself would run in another form."""
    if not file.without_descriptors:
        return []
    names = ", ".join(file.without_descriptors)
    return ["", f"sparsec runs {names} through TMA descriptors; here they read by pointers, which may take longer."]


def version() -> str:
    """The version of the package that this module is part of."""
    return str(sys.modules["sparsec"].__version__)


def imports(file: Exported) -> str:
    """The imports, and the device on which inputs must be."""
    kernels = ["import triton", "import triton.language as tl"] if file.target.backend == "triton" else []
    place = '"cuda" if torch.cuda.is_available() else "cpu"' if file.target.device == "cuda" else '"cpu"'
    return "\n".join([*host_imports(file), *kernels, "", f"DEVICE = {place}"])
