"""From the tensors of a call to concrete dims, with the checks that must precede any kernel."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
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


def float_dtype(variant: Variant, tensors: Sequence[Tensor]) -> str:
    """The dtype of the "float" inputs among inputs in order, unchecked."""
    found = (str(x.dtype) for spec, x in zip(variant.inputs.values(), tensors, strict=True) if spec.dtype == "float")
    return next(found, "float32").removeprefix("torch.")


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
    for rule in index_rules(variant, dims):
        rule(tensors[rule.name])


def index_rules(variant: Variant, dims: Mapping[str, int]) -> list[IndexRule]:
    """What must hold of given indices and counts at these dims."""
    found: list[IndexRule] = []
    for node in variant.nodes:
        for selection in node.positional[2:] if node.op is Op.ATTEND else ():
            if selection.op is Op.GIVEN:
                tokens = int(evaluate(node.src[1].shape[1], dims))
                units = -(-tokens // selection.integer("size"))
                found += _rule(selection, selection.src[0], -1, units - 1)
                if counts := selection.operands.get("counts"):
                    found += _rule(selection, counts, 0, int(evaluate(selection.shape[3], dims)))
    return found


def _rule(selection: Node, source: Node, low: int, high: int) -> list[IndexRule]:
    return [IndexRule(str(source["name"]), low, high, selection.word("unit"))] if source.op is Op.INPUT else []


class IndexRule:
    """The range of a given tensor's values. A tensor that passed passes again at once until it is changed."""

    def __init__(self, name: str, low: int, high: int, unit: str) -> None:
        self.name, self.low, self.high, self.unit = name, low, high, unit
        self._passed: tuple[weakref.ref[Tensor], int] | None = None

    def __call__(self, x: Tensor) -> None:
        """Raises InputError where a value is out of range."""
        if self._passed is not None and self._passed[0]() is x and self._passed[1] == x._version:
            return
        if x.numel():
            self._check(*_extremes(x))
        self._passed = None if x.is_inference() else (weakref.ref(x), x._version)

    def _check(self, least: int, most: int) -> None:
        if least < self.low or most > self.high:
            wrong = most if most > self.high else least
            rule = f"values go from {self.low} to {self.high} here ({self.unit}s; -1 stands for none)"
            raise InputError(self.name, f"value {wrong}", rule, "clamp it, or use -1 for slots left over")


def _extremes(x: Tensor) -> tuple[int, int]:
    """The least and the largest value. On a GPU this waits for it, so a tensor is looked at again only once changed."""
    import torch
    from torch.utils.weak import WeakIdKeyDictionary

    global _SEEN
    if x.is_inference():  # nothing tells whether it was changed
        least, most = torch.stack(torch.aminmax(x)).tolist()
        return int(least), int(most)
    _SEEN = WeakIdKeyDictionary() if _SEEN is None else _SEEN
    version, least, most = _SEEN.get(x, (-1, 0, 0))
    if version != x._version:
        least, most = torch.stack(torch.aminmax(x)).tolist()
        _SEEN[x] = (x._version, least, most)
    return int(least), int(most)


_SEEN: Any = None
