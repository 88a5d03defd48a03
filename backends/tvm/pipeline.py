"""From TVMScript source to machine code, by a short list of passes."""

from __future__ import annotations

from functools import cache
from typing import Any

from sparsec.backends.tvm.reader import read
from sparsec.backends.tvm.threads import load_tvm

NAME = "sparsec"


@cache
def machine() -> str:
    """The LLVM name of this processor; "native" would silently mean a generic one."""
    load_tvm()
    from tvm.target.codegen import llvm_get_system_cpu

    return str(llvm_get_system_cpu())


@cache
def has_feature(feature: str) -> bool:
    """Whether this processor has an LLVM feature such as "avx512f"."""
    tvm = load_tvm()
    from tvm.target.codegen import target_has_features

    return bool(target_has_features(feature, tvm.target.Target({"kind": "llvm", "mcpu": machine()})))


def vector_floats() -> int:
    """Floats per vector register: 16 with AVX-512, 8 with AVX, 4 elsewhere."""
    return 16 if has_feature("avx512f") else 8 if has_feature("avx") else 4


def vector_registers() -> int:
    """Vector registers: 32 with AVX-512 and on NEON, 16 elsewhere."""
    return 32 if has_feature("avx512f") or has_feature("neon") else 16


def build(source: str, mcpu: str | None = None) -> Any:
    """The compiled module of a kernel's source; its function is called ``main``."""
    tvm = load_tvm()
    _register(tvm)
    target = tvm.target.Target({"kind": "llvm", "mcpu": mcpu or machine()})
    return tvm.compile(read(source), target=target, tir_pipeline=NAME)


def _register(tvm: Any) -> None:
    """Declare the pipeline: the source is flat and explicit, so that most standard passes have nothing to do."""
    from tvm.tirx import compilation_pipeline as standard

    if NAME not in standard.PIPELINE_MAP:
        standard.register_tir_pipeline(NAME, lambda: (_passes(tvm), _last_passes, standard.finalize_device_passes))


def _passes(tvm: Any) -> Any:
    from tvm.tirx import transform as x

    steps = [
        x.StorageRewrite(),  # buffers that are never live together share memory
        x.AnnotateEntryFunc(),
        x.SplitHostDevice(),
        x.MakePackedAPI(),
    ]
    return tvm.transform.module_pass(lambda module, _: tvm.ir.transform.Sequential(steps)(module), opt_level=0)


def _last_passes() -> Any:
    """What follows on the host: without LowerIntrin, which takes minutes over long chains of names, and is not needed.

    It simplifies every condition with the values of all names written out; the source calls LLVM's functions itself.
    """
    from tvm.tirx.transform import LowerTVMBuiltin

    return LowerTVMBuiltin()
