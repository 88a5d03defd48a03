"""How an exported file builds and launches TVM kernels; its text is copied into the file."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from sparsec.backends.tvm.build import flat
from sparsec.backends.tvm.pipeline import build
from sparsec.backends.tvm.threads import load_tvm

BUILT: dict[str, Any] = {}


def read(source: str) -> Any:
    """A kernel's source as TVM's own parser reads it; sparsec has a quicker reader for what it prints."""
    load_tvm()
    from tvm.script import from_source

    return from_source(source, check_well_formed=False)


def launch(source: str, tensors: list[Tensor], params: list[int]) -> None:
    """Run a kernel, built from its source when it is first needed: flat buffers, parameters, strides but the last."""
    if source not in BUILT:
        BUILT[source] = build(source)["main"]
    strides = [stride if x.numel() else 0 for x in tensors for stride in x.stride()[:-1]]
    BUILT[source](*(flat(x) for x in tensors), *params, *strides)
