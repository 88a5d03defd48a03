"""FlexAttention's functions as a variant: score_mod(score, b, h, q_idx, kv_idx), mask_mod(b, h, q_idx, kv_idx)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from sparsec.frontends.activations import keys_values, queries
from sparsec.ir import build as lang
from sparsec.ir.error import DeclarationError
from sparsec.ir.node import Node
from sparsec.ir.origin import caller
from sparsec.ir.schema import PAIR
from sparsec.ir.variant import Variant, variant
from sparsec.scalar.closure import captured_tensors
from sparsec.scalar.expr import Expr, Kind
from sparsec.scalar.trace import TraceError, trace

DTYPES = {"float32": "float32", "float16": "float", "bfloat16": "float", "int32": "int32", "int64": "int32"}
MASKED: Mapping[str, Kind] = {name: kind for name, kind in PAIR.items() if name != "score"}


def from_flex(
    score_mod: Callable[..., Any] | None = None,
    mask_mod: Callable[..., Any] | None = None,
    captures: Mapping[str, Any] | None = None,
    *,
    name: str = "flex",
) -> Variant:
    """The variant that computes ``flex_attention`` with these functions; tensors that they read become inputs.

    ``captures`` names those tensors, or gives the shape of one as text ("B TK int32") where its length is to stay open;
    without it they are found in the functions' closures and keep their names there. An int64 tensor becomes an int32
    input. Positions are absolute: equal to FlexAttention's where TQ = TK, and queries stand at the end otherwise.

    Raises:
        DeclarationError: a function that cannot be traced, or a captured tensor of another dtype.
    """
    try:
        return _declared(score_mod, mask_mod, captures, name)
    except DeclarationError as error:
        raise DeclarationError(error.node, error.value, error.rule, error.fix, caller()) from error


def _declared(
    score_mod: Callable[..., Any] | None,
    mask_mod: Callable[..., Any] | None,
    captures: Mapping[str, Any] | None,
    name: str,
) -> Variant:
    functions = [fn for fn in (score_mod, mask_mod) if fn is not None]
    tensors = dict(captures) if captures is not None else _found(functions)
    inputs: dict[str, Any] = {key: _input(key, tensor) for key, tensor in tensors.items()}
    known = {key: inputs[key].element_kind if isinstance(tensor, str) else tensor for key, tensor in tensors.items()}
    memory = keys_values()
    masks = [] if mask_mod is None else [lang.mask(memory, where=_traced(mask_mod, MASKED, known, "bool"), **inputs)]
    bias = None if score_mod is None else _traced(score_mod, PAIR, known, "float")
    return variant(name, lang.attend(queries(), memory, *masks, bias=bias, **inputs))


def _found(functions: list[Callable[..., Any]]) -> dict[str, Any]:
    """Tensors in closures; one that both functions read is one input, two of one name are kept apart."""
    found: dict[str, Any] = {}
    for fn in functions:
        for key, tensor in captured_tensors(fn).items():
            if not any(tensor is known for known in found.values()):
                found[key if key not in found and key not in "qkv" else f"{key}_{len(found)}"] = tensor
    return found


def _input(name: str, tensor: Any) -> Node:
    if isinstance(tensor, str):
        return lang.input(name, tensor)
    dtype = str(tensor.dtype).removeprefix("torch.")
    if dtype not in DTYPES:
        rule = f"a captured tensor is one of {', '.join(DTYPES)}"
        raise DeclarationError(f"capture {name}", dtype, rule, "convert it to int32 and compare with != 0")
    return lang.input(name, [int(size) for size in tensor.shape], DTYPES[dtype])


def _traced(fn: Callable[..., Any], index: Mapping[str, Kind], captures: Mapping[str, Any], kind: Kind) -> Expr:
    try:
        return trace(fn, index, captures, kind)
    except TraceError as error:
        name = getattr(fn, "__name__", "function")
        fix = "scalar arithmetic, comparisons, &, |, ~, where() and indexed tensors"
        raise DeclarationError(f"flex {name}", "it cannot be traced", str(error), error.fix or fix) from error
