"""From a caller's ``cu_seqlens`` to the documents of a packed call, checked as far as no value need be read."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sparsec.ir.error import InputError
from sparsec.ir.lengths import position
from sparsec.plan.packed.layout import Layout, Packing
from sparsec.runtime.env import Env
from sparsec.runtime.packed import segments
from sparsec.scalar.expr import Expr, var

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Given:
    """What a caller says of the documents; see ``Compiled.__call__``."""

    cu_seqlens: Any
    cu_seqlens_k: Any
    max_seqlen_q: Any
    max_seqlen_k: Any
    q_offset: Any

    @property
    def key(self) -> tuple[Any, ...]:
        """Everything, in order."""
        return self.cu_seqlens, self.cu_seqlens_k, self.max_seqlen_q, self.max_seqlen_k, self.q_offset


@dataclass(frozen=True, slots=True)
class Documents:
    """The documents of a call.

    Attributes:
        table: on the device; see ``sparsec.runtime.packed.segments.table``.
        count: how many.
        most: the queries and the keys of the longest, or more.
    """

    table: Tensor
    count: int
    most: tuple[int, int]


@dataclass(slots=True)
class Face:
    """A variant's inputs as a packed call takes them; keeps the last documents, whose table serves every layer.

    Attributes:
        shapes: of each input by name, over a document's lengths.
        layouts: of each input by name; None for one that all documents share.
        keys: whether the variant has keys that positions refer to.
    """

    variant: str
    packing: Packing
    shapes: Mapping[str, Sequence[Expr]]
    layouts: Mapping[str, Layout | None]
    keys: bool
    last: tuple[tuple[Any, ...], list[Any], Documents] | None = field(default=None)

    @property
    def shared(self) -> bool:
        """Whether queries and keys have one dim."""
        return not any(length is var("TK") for _, length in self.packing.dims)

    def documents(self, names: Sequence[str], tensors: Sequence[Tensor], given: Given) -> Documents:
        """The documents of a call. Raises InputError; on GPUs values are read only under SPARSEC_CHECK_VALUES."""
        shapes, device = [x.shape for x in tensors], tensors[0].device
        captured = device.type == "cuda" and _captured()  # a replay has to make the table anew
        last = self.last  # read once: another thread may put other documents there
        here = last is not None and not captured and last[2].table.device == device
        if last is not None and here and last[1] == shapes and _same(last[0], given.key):
            return last[2]
        named = dict(zip(names, tensors, strict=True))
        for name, x in named.items():
            self._check_rank(name, x)
        found = self._documents(device, self._rows(named), given)
        if not captured:
            self.last = (_kept(given.key), shapes, found)
        return found

    def _documents(self, device: Any, rows: Mapping[Expr, int], given: Given) -> Documents:
        apart = given.cu_seqlens_k is not None
        cu = segments.cumulated("cu_seqlens", given.cu_seqlens, device)
        cu_k = segments.cumulated("cu_seqlens_k", given.cu_seqlens_k, device) if apart else cu
        if apart and self.shared:
            rule = f"{self.variant} has one length for queries and keys"
            raise InputError("cu_seqlens_k", "given", rule, "leave it out, or declare TQ and TK")
        if cu.shape != cu_k.shape:
            value = f"{cu_k.numel() - 1} documents, cu_seqlens has {cu.numel() - 1}"
            rule = "each document has queries and keys"
            raise InputError("cu_seqlens_k", value, rule, "repeat an end for a document that has none")
        most = self._most(cu, cu_k, given, rows)
        offset = given.q_offset
        offset = segments.offsets(offset, cu) if _is_tensor(offset) else None if offset is None else position(offset)
        table = segments.table(cu, cu_k, offset, self.keys, self.packing.visible)
        if _readable(table):
            segments.check_visible(table, self.packing.visible, rows)
        return Documents(table, cu.numel() - 1, most)

    def _check_rank(self, name: str, x: Tensor) -> None:
        """As many dims as declared, without the batch where documents follow one another."""
        at, shape = self.layouts[name], self.shapes[name]
        if at is not None and at.along is not None and x.dim() != len(shape) - 1:
            wanted = ", ".join(str(d) for n, d in enumerate(shape) if n != at.batch)
            rule = f"packed, it is [{wanted}] with the rows of all documents one after the other"
            raise InputError(name, f"shape {tuple(x.shape)}", rule, f"give {len(shape) - 1} dims, without a batch")

    def _rows(self, tensors: Mapping[str, Tensor]) -> dict[Expr, int]:
        """The rows of all documents by their length. Raises InputError where two inputs differ."""
        found: dict[Expr, tuple[int, str]] = {}
        for name, x in tensors.items():
            at = self.layouts[name]
            if at is not None and at.along is not None:
                rows = x.shape[at.along - (at.along > at.batch)]
                known, first = found.setdefault(self.shapes[name][at.along], (rows, name))
                if known != rows:
                    rule = f"`{first}` has {known} rows of all documents"
                    raise InputError(name, f"{rows} rows", rule, "pack both by the same lengths")
        return {length: rows for length, (rows, _) in found.items()}

    def _most(self, cu: Tensor, cu_k: Tensor, given: Given, rows: Mapping[Expr, int]) -> tuple[int, int]:
        """The longest document's queries and keys: as given, else read on a CPU, else all rows."""
        alike = cu_k is cu
        longest_k = given.max_seqlen_q if alike and given.max_seqlen_k is None else given.max_seqlen_k
        found = []
        sides = (("q", cu, given.max_seqlen_q, ("TQ", "TK")), ("k", cu_k, longest_k, ("TK", "TQ")))
        for side, ends, number, (own, other) in sides:
            name = f"max_seqlen_{side}"
            if number is not None and (not isinstance(number, int) or isinstance(number, bool) or number < 0):
                raise InputError(name, repr(number), "the length of the longest document", "an int, or None")
            all_rows = rows.get(var(own), rows.get(var(other), 0) if alike else 0)
            if _readable(ends):
                label = "cu_seqlens" if side == "q" or alike else "cu_seqlens_k"
                least = segments.check_values(label, ends, all_rows, (name, number))
                number = least if number is None else number
            found.append(all_rows if number is None else number)
        return found[0], found[1]


def _captured() -> bool:
    """Whether a CUDA graph records what this thread launches."""
    import torch

    return torch.cuda.is_current_stream_capturing()


def _readable(x: Tensor) -> bool:
    """Whether values may be read: on a GPU only where the user asked for it."""
    return not x.is_cuda or Env().check_values


def _is_tensor(x: object) -> bool:
    import torch

    return isinstance(x, torch.Tensor)


def _kept(key: Sequence[Any]) -> tuple[Any, ...]:
    """A key that keeps no tensor alive, and knows when one was changed."""
    return tuple((weakref.ref(x), None if x.is_inference() else x._version) if _is_tensor(x) else x for x in key)


def _same(kept: Sequence[Any], key: Sequence[Any]) -> bool:
    """Whether a key holds the same tensors, unchanged."""
    for old, new in zip(kept, key, strict=True):
        if _is_tensor(new):
            if not isinstance(old, tuple) or old[0]() is not new or old[1] is None or old[1] != new._version:
                return False
        elif isinstance(old, tuple) or old != new:
            return False
    return True
