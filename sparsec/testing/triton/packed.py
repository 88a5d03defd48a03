"""Packed calls in Triton's interpreter: ``python -m sparsec.testing.triton.packed FOLDER NAME…``.

Needs TRITON_INTERPRET=1 in the environment. Prints one JSON object: per variant the errors of outputs and of gradients
against the tile interpreter. Presets of ``STATES`` go by chunks.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from unittest.mock import patch

from pytest import MonkeyPatch
from torch import Tensor

from sparsec.frontends.preset import preset
from sparsec.runtime import compiled, ready
from sparsec.runtime.packed import calls as packed
from sparsec.runtime.target import Target, find
from sparsec.testing.inputs.variants import small
from sparsec.testing.triton.pace import keep_pace
from sparsec.testing.whole.by_chunks import by_chunks
from sparsec.testing.whole.packed import (
    cotangents_like,
    floats,
    gradients,
    largest_difference,
    largest_error,
    packed_case,
    results,
)

LENGTHS = (3, 0, 1, 20)

STATES: dict[str, dict[str, object]] = {"sse": {}, "sse_gdn": {"k": 2}, "delta_product": {}}
CUT = (21, 0, 1, 70)
"""Documents of theirs, the last of two segments."""

ROUTERS = ("x", "w")
"""What a router's gradients are of, which loop over all documents: numbers that Triton's interpreter takes for ints."""


class Here(Target):
    """A GPU's target whose tensors live on the CPU, where Triton's interpreter runs."""

    @property
    def device(self) -> str:
        """Where tensors live."""
        return "cpu"


def launched(call: ready.Ready, tensors: Sequence[Tensor]) -> list[Tensor]:
    """A call made the slow way: interpreted kernels cannot be launched again by address."""
    buffers = call.run(dict(zip(call.names, tensors, strict=True)))
    return [buffers[name] for name in call.outputs]


def errors_of(name: str, target: Target, folder: Path) -> list[float]:
    """Of a variant's outputs and of its gradients."""
    variant, lengths = (preset(name, **STATES[name]), CUT) if name in STATES else (small(name), LENGTHS)
    layers = [compiled.Compiled(variant, t, folder) for t in (target, find("interpreter"))]
    case = packed_case(variant, lengths, lengths, **({"H": 1, "HKV": 1, "DX": 16} if name in STATES else {}))
    found, wanted = (results(layer, **case.packed, **case.ends) for layer in layers)
    wrt, seeds = [n for n in floats(variant) if n not in ROUTERS], cotangents_like(wanted)
    pulled, truth = (gradients(layer, case, wrt, seeds) for layer in layers)
    return [largest_difference(found, wanted), largest_error(pulled, truth)]


def main(folder: str, *names: str) -> None:
    """Run variants by name."""
    keep_pace()
    by_chunks(MonkeyPatch())
    hopper = find("triton:sm_90")
    target = Here(**{f.name: getattr(hopper, f.name) for f in fields(hopper)})
    anywhere = [patch.object(module, "available") for module in (compiled, packed)]
    with anywhere[0], anywhere[1], patch.object(ready.Ready, "__call__", launched):
        print(json.dumps({name: errors_of(name, target, Path(folder)) for name in names}))


if __name__ == "__main__":
    main(*sys.argv[1:])
