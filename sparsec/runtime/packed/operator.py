"""The torch operators of packed calls, as tracing sees them: the call, and the halves of a joint plan.

The longest document's lengths are numbers here: where a caller gives none, all rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.library import Library

from sparsec.plan.packed.layout import TOTAL, layout
from sparsec.runtime import bind, route
from sparsec.runtime.packed.documents import Given
from sparsec.runtime.shapes import dims_of, empties, sizes

if TYPE_CHECKING:
    from sparsec.runtime.compiled import Compiled

ENDS = (
    "Tensor cu_seqlens, Tensor? cu_seqlens_k, SymInt max_seqlen_q, SymInt max_seqlen_k, "
    "Tensor? offsets, SymInt? q_offset"
)
"""What an operator is given beside the inputs: what a caller says of the documents."""


def given_of(ends: Sequence[Any]) -> Given:
    """An operator's arguments ``ENDS`` as a call's."""
    cu, cu_k, most_q, most_k, offsets, q_offset = ends
    return Given(cu, cu_k, most_q, most_k, q_offset if offsets is None else offsets)


def define(library: Library, name: str, owners: Mapping[str, Compiled], tags: Sequence[Any]) -> None:
    """Define ``<name>_packed`` and the halves ``<name>_packed_forward`` and ``<name>_packed_backward``."""
    _define_call(library, name, owners, tags)
    _define_forward(library, name, owners, tags)
    _define_backward(library, name, owners, tags)


def _define_call(library: Library, name: str, owners: Mapping[str, Compiled], tags: Sequence[Any]) -> None:
    own = f"{name}_packed"

    def run(inputs: list[Tensor], *ends: Any) -> list[Tensor]:
        calls = owners[name].packed
        return _fresh(calls.forward(inputs, calls.documents(inputs, given_of(ends))))

    def fake(inputs: list[Tensor], *ends: Any) -> list[Tensor]:
        return _fake_outputs(owners[name], inputs, ends)

    def recorded(inputs: list[Tensor], *ends: Any) -> Any:
        if route.differentiated(inputs):
            return list(owners[name].packed.training.traced(inputs, ends))
        with torch._C._AutoDispatchBelowAutograd():
            return getattr(torch.ops.sparsec, own).default(inputs, *ends)

    library.define(f"{own}(Tensor[] inputs, {ENDS}) -> Tensor[]", tags=tags)
    library.impl(own, run, "CompositeExplicitAutograd")
    torch.library.register_fake(f"sparsec::{own}", fake, lib=library)
    library.impl(own, recorded, "Autograd")


def _define_forward(library: Library, name: str, owners: Mapping[str, Compiled], tags: Sequence[Any]) -> None:
    own = f"{name}_packed_forward"

    def run(inputs: list[Tensor], *rest: Any) -> list[Tensor]:
        calls, (*ends, wrt) = owners[name].packed, rest
        documents, views = calls.documents(inputs, given_of(ends)), calls.views(inputs)
        made = calls.ready(views, documents, tuple(wrt.split(",")))([*views, documents.table])
        return [*made, documents.table.clone()]

    def fake(inputs: list[Tensor], *rest: Any) -> list[Tensor]:
        calls, (*ends, wrt) = owners[name].packed, rest
        dims = call_dims(owners[name], inputs, ends)
        dtype = bind.float_dtype(owners[name].variant, inputs)
        plan = calls.halves(owners[name].training.joint(dims, dtype, wrt.split(","), packed=True)).split.forward
        columns = 5 + len(calls.packing.visible)
        table = inputs[0].new_empty([dims["B"], columns], dtype=torch.int32)
        return [*empties(plan, dict.fromkeys(plan.outputs), dims, inputs[0]), table]

    library.define(f"{own}(Tensor[] inputs, {ENDS}, str wrt) -> Tensor[]", tags=tags)
    library.impl(own, run, "CompositeExplicitAutograd")
    torch.library.register_fake(f"sparsec::{own}", fake, lib=library)


def _define_backward(library: Library, name: str, owners: Mapping[str, Compiled], tags: Sequence[Any]) -> None:
    own = f"{name}_packed_backward"

    def joint(dims: Sequence[Any], dtype: str, wrt: str) -> tuple[Any, dict[str, Any]]:
        calls = owners[name].packed
        named = dict(zip(dim_names(owners[name]), dims, strict=True))
        return calls.halves(owners[name].training.joint(named, dtype, wrt.split(","), packed=True)), named

    def run(tensors: list[Tensor], dims: list[int], dtype: str, wrt: str) -> list[Tensor]:
        halves, named = joint(dims, dtype, wrt)
        return _fresh(owners[name].packed.training.pulled(halves, tensors, named), tensors)

    def fake(tensors: list[Tensor], dims: list[Any], dtype: str, wrt: str) -> list[Tensor]:
        halves, named = joint(dims, dtype, wrt)
        return empties(halves.split.backward, halves.buffers, named, tensors[0])

    library.define(f"{own}(Tensor[] tensors, SymInt[] dims, str dtype, str wrt) -> Tensor[]", tags=tags)
    library.impl(own, run, "CompositeExplicitAutograd")
    torch.library.register_fake(f"sparsec::{own}", fake, lib=library)


def _fresh(outputs: Sequence[Tensor], inputs: Sequence[Tensor] = ()) -> list[Tensor]:
    """The outputs, copied where one is an input or given twice: an operator returns neither."""
    seen, found = {x.data_ptr() for x in inputs}, []
    for x in outputs:
        found.append(x.clone() if x.data_ptr() in seen else x)
        seen.add(x.data_ptr())
    return found


def dim_names(compiled: Compiled) -> tuple[str, ...]:
    """The dims of a packed call in the order of an operator's ``dims``."""
    totals = [f"{TOTAL}{n}" for n in ("TQ", "TK", *range(len(compiled.packed.packing.visible)))]
    return tuple(dict.fromkeys([*compiled.training.dims, "B", "TQ", "TK", *totals]))


def call_dims(compiled: Compiled, inputs: Sequence[Tensor], ends: Sequence[Any]) -> dict[str, Any]:
    """The dims of a packed call, which tracing may keep symbolic; unchecked."""
    calls, most = compiled.packed, {"TQ": ends[2], "TK": ends[3]}
    if calls.face.shared:
        most["TK"] = most["TQ"]
    views = calls.views(inputs)
    found = dict(dims_of(compiled.graph.parameters, views))
    longest = {name: sizes([length], most)[0] for name, length in calls.packing.dims}
    return {**found, **longest, **most, "B": ends[0].shape[0] - 1, "q_offset": 0, **calls.totals(views)}


def _fake_outputs(compiled: Compiled, inputs: Sequence[Tensor], ends: Sequence[Any]) -> list[Tensor]:
    """Empty packed outputs."""
    calls, dims, made = compiled.packed, call_dims(compiled, inputs, ends), []
    given = getattr(torch, bind.float_dtype(compiled.variant, inputs))
    for node in compiled.graph.outputs:
        shape = [calls.packing.of(d) for d in node.shape]
        at = layout(shape, calls.packing)
        assert at is not None
        whole = sizes(node.shape, dims)
        if at.along is not None:
            whole[at.along] = dims[f"{TOTAL}TQ"]
            whole.pop(at.batch)
        dtype = given if node.dtype == "float" else getattr(torch, node.dtype)
        made.append(inputs[0].new_empty(whole, dtype=dtype))
    return made
