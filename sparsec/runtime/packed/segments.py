"""The table of a packed call: where every document begins, how long it is, and at which position its queries begin."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from sparsec.ir.error import InputError
from sparsec.scalar.expr import Expr
from sparsec.scalar.fn import Fn
from sparsec.scalar.walk import transform

if TYPE_CHECKING:
    import torch
    from torch import Tensor


MOST_DOCUMENTS = 65535


def cumulated(name: str, cu: object, device: torch.device) -> Tensor:
    """``cu_seqlens`` checked as far as its values need not be read."""
    import torch

    if not isinstance(cu, torch.Tensor):
        raise InputError(name, f"a {type(cu).__name__}", "it is a tensor of cumulated lengths", "torch.tensor([0, …])")
    if cu.dtype is not torch.int32:
        raise InputError(name, f"dtype {cu.dtype}", "cumulated lengths are int32", ".to(torch.int32)")
    if cu.dim() != 1 or not cu.numel():
        rule = "it holds 0 and then the end of every document"
        raise InputError(name, f"shape {tuple(cu.shape)}", rule, "torch.cat([zero, lengths.cumsum(0)])")
    if cu.device != device:
        raise InputError(name, f"on {cu.device}", f"it lives with the inputs, on {device}", f".to('{device}')")
    check_count(name, cu.numel() - 1, device.type)
    return cu


def check_count(name: str, documents: int, device: str) -> None:
    """Documents are the third dimension of a GPU's grids. Raises InputError where there are too many."""
    if device == "cuda" and documents > MOST_DOCUMENTS:
        rule = f"a GPU's grid has room for {MOST_DOCUMENTS} documents"
        raise InputError(name, f"{documents} documents", rule, "split the call")


def check_values(name: str, cu: Tensor, rows: int, longest: tuple[str, int | None]) -> int:
    """The length of the longest document. Reads the values: on a GPU this waits for it.

    Raises InputError where they do not start at 0, descend, do not end at ``rows``, or exceed ``longest``, an argument
    by its name.
    """
    ends = cu.tolist()
    if ends[0] != 0:
        raise InputError(name, f"it starts at {ends[0]}", "the first document starts at 0", "prepend a 0")
    sizes = [end - start for start, end in pairwise(ends)]
    for n, size in enumerate(sizes):
        if size < 0:
            value = f"{ends[n]} is followed by {ends[n + 1]} (document {n})"
            raise InputError(name, value, "cumulated lengths do not descend", "cumulate lengths: .cumsum(0)")
    if ends[-1] != rows:
        rule = f"the packed tensors have {rows} rows, which the documents fill"
        raise InputError(name, f"it ends at {ends[-1]}", rule, f"let it end at {rows}")
    found, (argument, most) = max(sizes, default=0), longest
    if most is not None and found > most:
        raise InputError(argument, str(most), f"a document has {found} tokens", f"{argument}={found}, or more")
    return int(found)


def check_visible(table: Tensor, visible: Sequence[Expr], rows: Mapping[Expr, int]) -> None:
    """As many chunks as documents have. Reads the values. Raises InputError."""
    for length in visible:
        wanted = int(counted(length, {"TQ": table[:, 1], "TK": table[:, 3]}).sum())
        if wanted != rows[length]:
            rule = f"each document has {length} of them, {wanted} in all"
            raise InputError("cu_seqlens", f"inputs with {rows[length]} rows of chunks", rule, "pack them by document")


_OPERATORS: dict[Fn, Callable[[Any, Any], Any]] = {
    Fn.ADD: operator.add, Fn.SUB: operator.sub, Fn.MUL: operator.mul, Fn.FLOORDIV: operator.floordiv,
}  # fmt: skip


def counted(length: Expr, lengths: Mapping[str, Tensor]) -> Tensor:
    """A length of every document. Numbers stay numbers: one made a tensor on a GPU would wait for it."""

    def rule(x: Expr, args: tuple[Any, ...]) -> Any:
        if x.head == "const":
            return x.value
        return lengths[str(x.value)] if x.head == "var" else _OPERATORS[x.head](*args)  # type: ignore[index]

    found: Tensor = transform(length, rule)
    return found


def offsets(given: Tensor, cu: Tensor) -> Tensor:
    """Positions of the first queries, one per document. Raises InputError."""
    if given.shape != (cu.numel() - 1,) or given.dtype != cu.dtype or given.device != cu.device:
        value = f"{given.dtype} of shape {tuple(given.shape)} on {given.device}"
        rule = f"one int32 position per document ({cu.numel() - 1}), where cu_seqlens lives"
        raise InputError("q_offset", value, rule, "an int for all, or None for queries that end with their keys")
    return given


def table(cu: Tensor, cu_k: Tensor, q_offset: int | Tensor | None, keys: bool, visible: Sequence[Expr]) -> Tensor:
    """The documents' table ``[documents, 5 + len(visible)]``, int32, computed where ``cu`` lives, never read back.

    Args:
        q_offset: the position of every document's first query; None lets queries end with their keys, and is 0 where
            there are no keys.
        keys: whether there are.
        visible: further lengths by which the caller's tensors are packed; a column each says where a document begins.
    """
    import torch

    q_len, k_len = cu[1:] - cu[:-1], cu_k[1:] - cu_k[:-1]
    if q_offset is None:
        q_offset = k_len - q_len if keys else 0
    offset = q_offset if isinstance(q_offset, torch.Tensor) else torch.full_like(q_len, q_offset)
    columns = [cu[:-1], q_len, cu_k[:-1], k_len, offset]
    for length in visible:
        counts = counted(length, {"TQ": q_len, "TK": k_len})
        columns.append(counts.cumsum(0) - counts)
    return torch.stack([c.to(torch.int32) for c in columns], dim=1).contiguous()
