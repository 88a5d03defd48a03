"""The worker that compiles kernels for a named architecture, without a GPU: JSON in, JSON out.

Run as ``python -m sparsec.backends.triton.aot`` without TRITON_INTERPRET, with which Triton cannot compile.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sparsec.backends.triton.build import load
from sparsec.backends.triton.gluon.turns import GROUP_WARPS
from sparsec.backends.triton.resources import of_amd, of_nvidia


def compile_job(job: dict[str, Any]) -> dict[str, Any]:
    """Compile one job; a failure is a result with an ``error``."""
    try:
        return _compile(job)
    except Exception as error:  # whatever a compiler throws is a fact about the candidate, not about us
        return {"error": reason(error)}


def reason(error: BaseException) -> str:
    """An error and what caused it: Triton reports a fault in a helper only as the cause of a fault in its caller."""
    said = f"{type(error).__name__}: {error}"
    return f"{said}\ncaused by {reason(error.__cause__)}" if error.__cause__ else said


def _compile(job: dict[str, Any]) -> dict[str, Any]:
    import triton

    folder = Path(job["folder"])
    kernel = load(job["source"], job["name"], folder)
    types = {name: kind.partition(":")[0] for name, kind in job["signature"].items()}
    attrs = {
        (k,): [["tt.divisibility", 16]] for k, kind in enumerate(job["signature"].values()) if kind.endswith(":16")
    }
    options = {
        "num_warps": GROUP_WARPS if gluon(kernel) else job["warps"],
        "num_stages": job["stages"],
        "enable_fp_fusion": True,
    }
    if job["registers"]:
        options["maxnreg"] = job["registers"]
    made = triton.compile(
        _source(kernel)(kernel, types, attrs=attrs), target=gpu_target(job["target"]), options=options
    )
    binary, text = ("cubin", "ptx") if "cubin" in made.asm else ("hsaco", "amdgcn")
    stem = folder / f"{job['name']}_{made.hash[:16]}_{job['target']}"
    paths = [stem.with_suffix(f".{kind}") for kind in (binary, text)]
    paths[0].write_bytes(made.asm[binary])
    paths[1].write_text(made.asm[text])
    shared = made.metadata.shared
    found = of_nvidia(paths[0], made.asm[text], shared) if binary == "cubin" else of_amd(made.asm[text], shared)
    return {"binary": str(paths[0]), "assembly": str(paths[1]), "triton": triton.__version__, **asdict(found)}


def gluon(kernel: Any) -> bool:
    """Whether a kernel is written in Gluon, whose roles begin from a kernel of one group's warps."""
    return bool(getattr(kernel, "is_gluon", bool)())


def _source(kernel: Any) -> Any:
    if gluon(kernel):
        from triton.experimental.gluon._runtime import GluonASTSource

        return GluonASTSource
    from triton.compiler import ASTSource

    return ASTSource


def gpu_target(name: str) -> Any:
    """Triton's description of ``sm_90`` or ``gfx942``."""
    from triton.backends.compiler import GPUTarget

    if name.startswith("sm_"):
        return GPUTarget("cuda", int(name.removeprefix("sm_")), 32)
    return GPUTarget("hip", name, 64 if name.startswith("gfx9") else 32)


def main() -> None:
    """Compile the jobs on standard input one after another; one line of JSON each on standard output."""
    out, sys.stdout = sys.stdout, sys.stderr
    for job in json.load(sys.stdin):
        print(json.dumps(compile_job(job)), file=out, flush=True)


if __name__ == "__main__":
    main()
