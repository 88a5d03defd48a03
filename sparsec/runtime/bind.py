"""From the tensors of a call to concrete dims, with the checks that must precede any kernel."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sparsec.ir.error import InputError
from sparsec.ir.node import Node
from sparsec.ir.op import Op
from sparsec.ir.suggest import did_you_mean
from sparsec.ir.variant import Variant
from sparsec.scalar.evaluate import evaluate

if TYPE_CHECKING:
    from torch import Tensor

FLOAT_DTYPES = ("float32", "float16", "bfloat16")


def call_dtype(variant: Variant, tensors: Mapping[str, Tensor]) -> str:
    """The one dtype of the "float" inputs. Raises InputError where a dtype is unknown or two disagree."""
    found: dict[str, str] = {}
    for name, spec in variant.inputs.items():
        given = str(tensors[name].dtype).removeprefix("torch.")
        if spec.dtype == "float" and given not in FLOAT_DTYPES:
            raise InputError(name, f"dtype {given}", f"kernels take {', '.join(FLOAT_DTYPES)}", "convert it with .to()")
        if spec.dtype != "float" and given != spec.dtype:
            raise InputError(name, f"dtype {given}", f"the declaration says {spec.dtype}", f".to(torch.{spec.dtype})")
        if spec.dtype == "float":
            found.setdefault(given, name)
    if len(found) > 1:
        pairs = ", ".join(f"{n} is {d}" for d, n in found.items())
        raise InputError(list(found.values())[1], pairs, "all float inputs have one dtype", "convert one of them")
    return next(iter(found), "float32")


def check_names(variant: Variant, tensors: Mapping[str, object]) -> None:
    """Every input is given, nothing else, and each is a tensor."""
    import torch

    known = ", ".join(variant.inputs)
    for name in tensors:
        if name not in variant.inputs:
            raise InputError(name, "not an input", f"{variant.name} takes {known}", did_you_mean(name, variant.inputs))
    for name in variant.inputs:
        if name not in tensors:
            raise InputError(name, "missing", f"{variant.name} takes {known}", f"give it: {name}=…")
        if not isinstance(tensors[name], torch.Tensor):
            raise InputError(name, f"a {type(tensors[name]).__name__}", "inputs are tensors", "torch.as_tensor(…)")


def check_devices(tensors: Mapping[str, Tensor], device: str) -> None:
    """All inputs live on one device, that of the target, and their last dim is dense."""
    first_name, first = next(iter(tensors.items()))
    for name, x in tensors.items():
        if x.device != first.device:
            places = f"{first_name} on {first.device}, {name} on {x.device}"
            raise InputError(name, places, "all inputs live on one device", f".to('{first.device}')")
        if x.device.type != device:
            fix = f".to('{device}'), or compile for another target"
            raise InputError(name, f"on {x.device}", f"the target's kernels run on {device}", fix)
        if x.numel() and x.shape[-1] > 1 and x.stride(-1) != 1:
            raise InputError(name, f"last stride {x.stride(-1)}", "the last dim is dense (stride 1)", ".contiguous()")


def check_indices(variant: Variant, tensors: Mapping[str, Tensor], dims: Mapping[str, int]) -> None:
    """Given indices are -1 or name a unit that exists, given counts fit; checked before a kernel could read outside."""
    for node in variant.nodes:
        for selection in node.positional[2:] if node.op is Op.ATTEND else ():
            if selection.op is Op.GIVEN:
                tokens = int(evaluate(node.src[1].shape[1], dims))
                _check_range(selection, selection.src[0], tensors, -1, -(-tokens // selection.integer("size")) - 1)
                if counts := selection.operands.get("counts"):
                    _check_range(selection, counts, tensors, 0, int(evaluate(selection.shape[3], dims)))


def _check_range(selection: Node, source: Node, tensors: Mapping[str, Tensor], low: int, high: int) -> None:
    if source.op is not Op.INPUT or not (x := tensors[str(source["name"])]).numel():
        return
    least, most = _extremes(x)
    if least < low or most > high:
        wrong = most if most > high else least
        rule = f"values go from {low} to {high} here ({selection.word('unit')}s; -1 stands for none)"
        raise InputError(str(source["name"]), f"value {wrong}", rule, "clamp it, or use -1 for slots left over")


def _extremes(x: Tensor) -> tuple[int, int]:
    """The least and the largest value. On a GPU this waits for it, so a tensor is looked at again only once changed."""
    import torch
    from torch.utils.weak import WeakIdKeyDictionary

    global _SEEN
    _SEEN = WeakIdKeyDictionary() if _SEEN is None else _SEEN
    version, least, most = _SEEN.get(x, (-1, 0, 0))
    if version != x._version:
        least, most = torch.stack(torch.aminmax(x)).tolist()
        _SEEN[x] = (x._version, least, most)
    return int(least), int(most)


_SEEN: Any = None
