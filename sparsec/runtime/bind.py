"""From the tensors of a call to concrete dims, with the checks that must precede any kernel."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from sparsec.ir.node import Node
from sparsec.ir.op import Op
from sparsec.ir.variant import Variant

if TYPE_CHECKING:
    from torch import Tensor


class InputError(ValueError):
    """An input of a call that does not fit the declaration: names it, the value, the rule and a fix."""


FLOAT_DTYPES = ("float32", "float16", "bfloat16")


def call_dtype(variant: Variant, tensors: Mapping[str, Tensor]) -> str:
    """The one dtype of the "float" inputs."""
    found: dict[str, str] = {}
    for name, spec in variant.inputs.items():
        given = str(tensors[name].dtype).removeprefix("torch.")
        if spec.dtype == "float":
            if given not in FLOAT_DTYPES:
                raise InputError(f"input `{name}` is {given}: kernels take {', '.join(FLOAT_DTYPES)}; convert it")
            found.setdefault(given, name)
        elif given != spec.dtype:
            raise InputError(
                f"input `{name}` is {given}: the declaration says {spec.dtype}; use .to(torch.{spec.dtype})"
            )
    if len(found) > 1:
        pairs = ", ".join(f"`{n}` is {d}" for d, n in found.items())
        raise InputError(f"inputs disagree in dtype ({pairs}): give all of them one dtype")
    return next(iter(found), "float32")


def check_names(variant: Variant, tensors: Mapping[str, object]) -> None:
    """Every input is given, and nothing else."""
    import torch

    missing = [n for n in variant.inputs if n not in tensors]
    surplus = [n for n in tensors if n not in variant.inputs]
    if missing or surplus:
        said = [f"missing {', '.join(missing)}"] if missing else []
        said += [f"unknown {', '.join(surplus)}"] if surplus else []
        raise InputError(f"{variant.name}: {'; '.join(said)}. Its inputs are {', '.join(variant.inputs)}")
    for name, value in tensors.items():
        if not isinstance(value, torch.Tensor):
            raise InputError(f"input `{name}` is a {type(value).__name__}: give a torch tensor")


def check_devices(tensors: Mapping[str, Tensor], device: str) -> None:
    """All inputs live on the device of the target, with a last stride of 1 and no negative or broadcast trap."""
    places = {name: x.device for name, x in tensors.items()}
    if len(set(places.values())) > 1:
        raise InputError(
            f"inputs live on different devices: {', '.join(f'{n} on {d}' for n, d in places.items())}; move them"
        )
    for name, x in tensors.items():
        if x.device.type != device:
            raise InputError(
                f"input `{name}` is on {x.device}, the kernels run on {device}; use .to('{device}') or another target"
            )
        if x.numel() and x.shape[-1] > 1 and x.stride(-1) != 1:
            raise InputError(f"input `{name}` has last stride {x.stride(-1)}: kernels need 1; use .contiguous()")


def check_indices(variant: Variant, tensors: Mapping[str, Tensor], dims: Mapping[str, int]) -> None:
    """Given indices are -1 or name a unit that exists; checked before a kernel could read out of bounds."""
    from sparsec.scalar.evaluate import evaluate

    for node in variant.nodes:
        for selection in node.positional[2:] if node.op is Op.ATTEND else ():
            if selection.op is Op.GIVEN:
                tokens = int(evaluate(node.src[1].shape[1], dims))
                _check_range(selection, tensors, -(-tokens // selection.integer("size")))


def _check_range(selection: Node, tensors: Mapping[str, Tensor], units: int) -> None:
    source = selection.src[0]
    if source.op is not Op.INPUT:
        return
    name = str(source["name"])
    x = tensors[name]
    if x.numel() and (int(x.min()) < -1 or int(x.max()) >= units):
        wrong = int(x.max()) if int(x.max()) >= units else int(x.min())
        raise InputError(
            f"input `{name}` holds index {wrong}: there are {units} {selection['unit']}s here, so indices go from 0 to "
            f"{units - 1}, and -1 stands for none"
        )
