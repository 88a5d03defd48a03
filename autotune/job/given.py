"""Real inputs from a file: arrays by input name, and memory slots made from them where the file has none."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from sparsec.ir.dims import bind, value
from sparsec.ir.error import InputError
from sparsec.ir.node import Node
from sparsec.ir.op import Op
from sparsec.ir.variant import InputSpec, Variant

DTYPES = {"float32": torch.float32, "int32": torch.int32}


@dataclass(frozen=True, slots=True)
class Given:
    """Inputs of a variant.

    Attributes:
        tensors: by input name.
        notes: what was made rather than read, in sentences.
    """

    tensors: Mapping[str, Tensor]
    notes: tuple[str, ...]


def load(path: Path, variant: Variant, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Given:
    """The inputs of a variant from an ``.npz`` file whose arrays have their names; a missing batch dim is added.

    Keys and values of slots that the file lacks are means over equal runs of the tokens' keys and values: learned
    parameters should look like what they stand for, and the same file gives the same slots.

    Raises:
        OSError: no such file.
        InputError: an input that is neither in the file nor made from it, or a shape that does not fit.
    """
    arrays = _read(path)
    found = {name: _fit(name, spec, arrays[name]) for name, spec in variant.inputs.items() if name in arrays}
    notes = []
    for name, source in slot_sources(variant).items():
        if name not in found and source in found:
            found[name] = runs(found[source], _fixed_rows(variant, name), len(variant.inputs[name].shape))
            notes.append(f"{name} has the means of {found[name].shape[-3]} equal runs of {source}")
    lacking = [name for name in variant.inputs if name not in found]
    if lacking:
        rule = f"{path.name} has {', '.join(arrays)}, and only memory slots can be made from those"
        raise InputError(
            ", ".join(lacking), "missing", rule, "add it to the file, or set the knobs that need no such input"
        )
    tensors = {name: found[name].to(device, _dtype(spec, dtype)) for name, spec in variant.inputs.items()}
    bind(variant, {name: tuple(x.shape) for name, x in tensors.items()})
    return Given(tensors, tuple(notes))


def _dtype(spec: InputSpec, call: torch.dtype) -> torch.dtype:
    """The dtype that an input is declared with; that of the call where it is "float"."""
    return call if spec.dtype == "float" else DTYPES[spec.dtype]


def _read(path: Path) -> dict[str, Tensor]:
    import numpy

    try:
        with numpy.load(path, allow_pickle=False) as arrays:
            return {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    except (ValueError, AttributeError) as error:
        raise InputError(str(path), "not arrays by name", f"{error}", "save it with numpy.savez") from error


def _fit(name: str, spec: InputSpec, x: Tensor) -> Tensor:
    """The array with as many dims as declared; one of fractions is not made whole."""
    if x.is_floating_point() and spec.dtype == "int32":
        raise InputError(name, f"dtype {x.dtype}", f"the declaration says {spec.dtype}", "save whole numbers")
    missing = len(spec.shape) - x.ndim
    return x.unsqueeze(0) if missing == 1 else x


def slot_sources(variant: Variant) -> dict[str, str]:
    """Inputs that are keys or values of slots, with the input that holds those of the tokens."""
    tokens = next((node for node in variant.nodes if node.op is Op.TOKENS), None)
    if tokens is None:
        return {}
    pairs: list[tuple[Node, Node]] = []
    for node in variant.nodes:
        if node.op is Op.SLOTS:
            pairs += zip(node.positional, tokens.positional, strict=False)
    return {str(a["name"]): str(b["name"]) for a, b in pairs if a.op is Op.INPUT and b.op is Op.INPUT}


def _fixed_rows(variant: Variant, name: str) -> int:
    return value(variant.inputs[name].shape[-3], {})


def runs(x: Tensor, count: int, rank: int) -> Tensor:
    """Means of ``count`` runs of tokens ``[B,T,HKV,D]`` -> ``[B,count,HKV,D]``, or of the first entry if rank is 3."""
    means = [part.float().mean(1) for part in x.tensor_split(count, dim=1)]
    made = torch.stack(means, dim=1)
    return made if rank == 4 else made[0]
