"""Options of flash-linear-attention's ops: those that mean nothing here, and those that are refused by name."""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from torch import Tensor

from sparsec.ir.error import InputError

P = ParamSpec("P")
R = TypeVar("R")

# They choose among kernels or save work on the host; the result is the same without them.
WITHOUT_EFFECT = frozenset({"cu_seqlens_cpu", "chunk_indices", "disable_recompute", "safe_gate", "checkpoint_level"})
_POWERS = (tuple(1 << n for n in range(16)), "a power of 2")
CHUNK_SIZES: dict[str, tuple[tuple[int, ...], str]] = {
    "chunk_delta_rule": ((16, 32, 64), "16, 32, or 64"),
    "chunk_gated_delta_rule": ((16, 32, 64), "16, 32, or 64 for Gated Delta Rule"),
    "chunk_kda": ((32, 64), "either 32 or 64 for KDA"),
    "chunk_gdn2": ((64,), "64 for GDN-2"),
    "chunk_iplr_delta_rule": _POWERS,
    "chunk_gsa": _POWERS,
    "chunk_simple_gla": _POWERS,
    "chunk_retention": _POWERS,
}
"""What fla demands of a chunk size, which means nothing here: a call that fla refuses is refused."""

REFUSED = {
    "head_first": "inputs are [B, T, H, D]",
    "cp_context": "sparsec runs on one device",
    "return_intermediate_states": "chunk states are not kept",
    "use_graph": "every call can be captured as it is",
    "max_num_seqs": "every call can be captured as it is",
    "output_attentions": "no kernel writes attention out",
    "gv": "delta rules decay per head or key channel",
}


def refuse(op: str, **options: object) -> None:
    """Raises InputError for the first option that is set and not supported, or not known at all."""
    for name, value in options.items():
        if name == "chunk_size":
            _chunk_size(op, value)
            continue
        if name in WITHOUT_EFFECT:
            continue
        if name not in REFUSED:
            raise InputError(f"{op}: {name}", repr(value), "there is no such option", f"leave out {name}")
        if name == "head_first" or (value is not None and value is not False):
            raise InputError(f"{op}: {name}", _said(value), REFUSED[name], f"leave out {name}")


def _chunk_size(op: str, size: object) -> None:
    """Raises InputError for a chunk size that fla has no kernel for."""
    sizes, rule = CHUNK_SIZES.get(op, ((), ""))
    if sizes and size is not None and size not in sizes:
        raise InputError(f"{op}: chunk_size", _said(size), f"`chunk_size` must be {rule}", "leave out chunk_size")


def _said(value: object) -> str:
    """A word or number as it is written, else what it is."""
    return repr(value) if isinstance(value, bool | int | float | str) else f"a {type(value).__name__}"


def need(op: str, **tensors: object) -> None:
    """Raises InputError for the first tensor that is missing."""
    for name, value in tensors.items():
        if value is None:
            raise InputError(f"{op}: {name}", "None", "it is needed here", f"give a tensor for {name}")


def forbid(op: str, reason: str, **tensors: object) -> None:
    """Raises InputError for the first tensor that is given and may not be."""
    for name, value in tensors.items():
        if value is not None:
            raise InputError(f"{op}: {name}", "a tensor", reason, f"leave out {name}")


def shaped(op: str, rule: str, fix: str, **tensors: tuple[Tensor | None, int]) -> None:
    """Raises InputError for the first tensor that has another number of dims than the one beside it."""
    for name, (x, dims) in tensors.items():
        if x is not None and x.dim() != dims:
            raise InputError(f"{op}: {name}", f"shape {tuple(x.shape)}", rule, fix)


def placed(first: int, *names: str) -> Callable[[Callable[P, R]], Callable[..., R]]:
    """An op that takes its first arguments by place as it says, and those after them in fla's order, as ``names``."""

    def wrapped(op: Callable[P, R]) -> Callable[..., R]:
        @functools.wraps(op)
        def call(*args: object, **options: object) -> R:
            more = dict(zip(names, args[first:], strict=False))
            if len(args) > first + len(names):
                rule = f"{first + len(names)} go by place"
                raise InputError(f"{op.__name__}: arguments", f"{len(args)} of them", rule, "give options by name")
            if twice := sorted(more.keys() & options.keys()):
                name = f"{op.__name__}: {twice[0]}"
                raise InputError(name, "given twice", "an argument goes by place or by name", f"leave out {twice[0]}=")
            return op(*args[:first], **more, **options)  # type: ignore[arg-type]

        return call

    return wrapped


def checked(op: Callable[P, R]) -> Callable[P, R]:
    """An op that refuses None, by name, for every tensor that its signature demands."""
    parameters = inspect.signature(op).parameters.values()
    demanded = [(n, p.name) for n, p in enumerate(parameters) if p.annotation == "Tensor" and p.default is p.empty]

    @functools.wraps(op)
    def call(*args: P.args, **options: P.kwargs) -> R:
        for place, name in demanded:
            if (args[place] if place < len(args) else options.get(name, ...)) is None:
                need(op.__name__, **{name: None})
        return op(*args, **options)

    return call


def renamed(op: Callable[P, R]) -> Callable[P, R]:
    """An op that takes ``transpose_state_layout``, the former name of ``state_v_first``, with a warning."""

    @functools.wraps(op)
    def call(*args: P.args, **options: P.kwargs) -> R:
        if "transpose_state_layout" in options:
            if "state_v_first" in options:
                name, fix = f"{op.__name__}: transpose_state_layout", "leave out transpose_state_layout"
                raise InputError(name, "both names", "state_v_first has taken its place", fix)
            warnings.warn("transpose_state_layout is now state_v_first", DeprecationWarning, stacklevel=2)
            options["state_v_first"] = options.pop("transpose_state_layout")
        return op(*args, **options)

    return call
