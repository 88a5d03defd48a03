"""The torch operator of a variant on a target: what tracing, export and graphs see of a call.

Defined by hand: torch's decorators cost 4 to 25 microseconds a call. Calls that nobody traces do not come here.
"""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.library import Library

from sparsec.runtime import route
from sparsec.runtime.known import TRACED
from sparsec.runtime.packed import operator as packed
from sparsec.runtime.shapes import dims_of, sizes

if TYPE_CHECKING:
    from sparsec.runtime.compiled import Compiled

NAMESPACE = "sparsec"
TAGS = (torch.Tag.pt2_compliant_tag, torch.Tag.needs_exact_strides)

_LIBRARY = Library(NAMESPACE, "FRAGMENT")
_OWNERS: dict[str, Compiled] = {}
_LOCK = threading.Lock()  # an operator is defined once, whichever thread asks first


def register(compiled: Compiled) -> Any:
    """The operator of a compiled variant, ``sparsec::<variant>_<digest>``, defined when it is first asked for.

    Variants that are equal share it, and the one compiled last runs it; their kernels compute the same.
    """
    name = operator_name(compiled)
    with _LOCK:
        if name not in _OWNERS:
            _define(name, compiled)
        _OWNERS[name] = compiled
    return getattr(getattr(torch.ops, NAMESPACE), name).default


def operator_name(compiled: Compiled) -> str:
    """The variant's name, and a digest of its graph, of its inputs' names and of the target."""
    variant = compiled.variant
    text = "\n".join([variant.digest, *variant.inputs, compiled.target.name])
    return f"{re.sub(r'[^0-9a-zA-Z]', '_', variant.name)}_{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def _define(name: str, compiled: Compiled) -> None:
    parameters = ", ".join(f"Tensor {n}" for n in compiled.variant.inputs)
    returned = ", ".join("Tensor" for _ in compiled.variant.outputs)
    _LIBRARY.define(f"{name}({parameters}, SymInt? q_offset) -> ({returned})", tags=TAGS)

    def run(*args: Any) -> Any:
        outputs = _distinct(_OWNERS[name].forward(args[:-1], args[-1]))
        return outputs[0] if len(outputs) == 1 else tuple(outputs)

    def fake(*args: Any) -> Any:
        outputs = fake_outputs(_OWNERS[name], args[:-1])
        return outputs[0] if len(outputs) == 1 else tuple(outputs)

    _LIBRARY.impl(name, run, "CompositeExplicitAutograd")
    torch.library.register_fake(f"{NAMESPACE}::{name}", fake, lib=_LIBRARY)
    _LIBRARY.impl(name, _autograd(name), "Autograd")
    packed.define(_LIBRARY, name, _OWNERS, TAGS)


def packed_operator(compiled: Compiled) -> Any:
    """The operator of packed calls, ``sparsec::<variant>_<digest>_packed``; the variant is registered."""
    return getattr(getattr(torch.ops, NAMESPACE), f"{operator_name(compiled)}_packed").default


def packed_rows(compiled: Compiled) -> tuple[int, int]:
    """The places of an input with a row per query, and of one with a row per key; of the first where there is none."""
    shapes = [spec.shape for spec in compiled.variant.inputs.values()]

    def place(length: Any) -> int:
        return next((n for n, shape in enumerate(shapes) if len(shape) > 1 and shape[1] is length), 0)

    return place(compiled.lengths.queries), place(compiled.lengths.keys)


def register_halves(compiled: Compiled) -> tuple[Any, Any]:
    """The operators ``<name>_forward`` and ``<name>_backward`` of the halves of a joint plan.

    Which inputs the gradients are for is a text, names with commas; what is saved is as long as the plan says.
    """
    name = operator_name(compiled)
    space = getattr(torch.ops, NAMESPACE)
    with _LOCK:
        if not hasattr(space, f"{name}_forward"):
            _define_forward(name)
            _define_backward(name)
    return getattr(space, f"{name}_forward").default, getattr(space, f"{name}_backward").default


def _define_forward(name: str) -> None:
    half = f"{name}_forward"

    def run(inputs: list[Tensor], q_offset: int | None, wrt: str) -> list[Tensor]:
        return list(_OWNERS[name].ready(inputs, q_offset, (TRACED, *wrt.split(",")))(inputs))

    def fake(inputs: list[Tensor], q_offset: Any, wrt: str) -> list[Tensor]:
        return _OWNERS[name].training.fake_forward(inputs, wrt.split(","))

    _LIBRARY.define(f"{half}(Tensor[] inputs, SymInt? q_offset, str wrt) -> Tensor[]", tags=TAGS)
    _LIBRARY.impl(half, run, "CompositeExplicitAutograd")
    torch.library.register_fake(f"{NAMESPACE}::{half}", fake, lib=_LIBRARY)


def _define_backward(name: str) -> None:
    half = f"{name}_backward"

    def run(kept: list[Tensor], cotangents: list[Tensor], dims: list[int], dtype: str, wrt: str) -> list[Tensor]:
        training = _OWNERS[name].training
        named = dict(zip(training.dims, dims, strict=True))
        halves = training.joint(named, dtype, wrt.split(","))
        return _distinct(training.run_backward(halves, kept, cotangents, named))

    def fake(kept: list[Tensor], cotangents: list[Tensor], dims: list[Any], dtype: str, wrt: str) -> list[Tensor]:
        training = _OWNERS[name].training
        return training.fake_backward(cotangents, dict(zip(training.dims, dims, strict=True)), dtype, wrt.split(","))

    given = "Tensor[] kept, Tensor[] cotangents, SymInt[] dims, str dtype, str wrt"
    _LIBRARY.define(f"{half}({given}) -> Tensor[]", tags=TAGS)
    _LIBRARY.impl(half, run, "CompositeExplicitAutograd")
    torch.library.register_fake(f"{NAMESPACE}::{half}", fake, lib=_LIBRARY)


def _autograd(name: str) -> Any:
    """The kernel under which gradients are recorded; without need of any, what lies below it."""

    def run(*args: Any) -> Any:
        owner = _OWNERS[name]
        if route.differentiated(args[:-1]):
            outputs = owner.training.forward(args[:-1], args[-1])
            return outputs[0] if len(outputs) == 1 else tuple(outputs)
        with torch._C._AutoDispatchBelowAutograd():
            return getattr(getattr(torch.ops, NAMESPACE), name).default(*args)

    return run


def fake_outputs(compiled: Compiled, tensors: Sequence[Tensor]) -> list[Tensor]:
    """Empty outputs of the right shapes and dtypes, for tracing."""
    dims, parameters = dims_of(compiled.graph.parameters, tensors), compiled.graph.parameters
    given = next((x.dtype for node, x in zip(parameters, tensors, strict=True) if node.dtype == "float"), torch.float32)
    return [
        tensors[0].new_empty(sizes(node.shape, dims), dtype=given if node.dtype == "float" else _dtype(node.dtype))
        for node in compiled.graph.outputs
    ]


def _dtype(name: str) -> torch.dtype:
    found = getattr(torch, name)
    assert isinstance(found, torch.dtype), name
    return found


def _distinct(outputs: Sequence[Tensor]) -> list[Tensor]:
    """The outputs, copied where one is given twice: an operator returns no tensor twice."""
    seen: set[int] = set()
    found = []
    for x in outputs:
        found.append(x.clone() if id(x) in seen else x)
        seen.add(id(x))
    return found
