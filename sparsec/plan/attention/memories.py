"""Memories as buffers of keys and values; summaries get kernels of their own."""

from __future__ import annotations

from dataclasses import dataclass

from sparsec.ir.node import Node
from sparsec.ir.op import Op
from sparsec.plan.honours import honours
from sparsec.plan.planner import Planner
from sparsec.plan.specs import Summarise
from sparsec.scalar.expr import Expr


@dataclass(frozen=True, slots=True)
class Held:
    """Where a memory lives.

    Attributes:
        k, v: buffers; v is None where the memory has no values.
        length: its number of rows.
        tokens: the number of tokens that query positions count along; None for slots.
    """

    k: str
    v: str | None
    length: Expr
    tokens: Expr | None
    batched: bool


def hold(planner: Planner, memory: Node, exact: bool = False) -> Held:
    """The buffers of a memory, planned where they must be computed.

    ``exact`` keeps computed summaries of keys in fp32, for a selector: rounding them would change what is chosen.
    """
    if memory.op in (Op.TOKENS, Op.SLOTS):
        honours(planner, memory, *(("chunk",) if memory.op is Op.TOKENS else ("origin",)))
        k, *rest = (planner.input(source) for source in memory.src)
        tokens = memory.shape[1] if memory.op is Op.TOKENS else None
        return Held(k, rest[0] if rest else None, memory.shape[1], tokens, len(memory.src[0].shape) == 4)
    if memory.op is not Op.SUMMARY:
        raise planner.refuse(memory, "no forward kernel reads this memory yet; tokens, slots and summaries are read")
    honours(planner, memory, "fn", "size", "stride", "fields")
    inner = hold(planner, memory.src[0], exact)
    if memory["fn"] == "given":
        return Held(planner.input(memory.src[1]), None, memory.shape[1], inner.tokens, True)
    part = "k_exact" if exact and planner.sizes.dtype != "float32" else "k"
    k = _summarise(planner, memory, inner, part, inner.k)
    v = None
    if memory["fields"] == "kv" and inner.v is not None and not exact:
        v = _summarise(planner, memory, inner, "v", inner.v)
    return Held(k, v, memory.shape[1], inner.tokens, True)


def _summarise(planner: Planner, memory: Node, inner: Held, part: str, source: str) -> str:
    """The windows of keys or of values, planned once however often they are read."""
    if (memory, part) in planner.places:
        return planner.places[memory, part]
    b, length, heads, d, dv = memory.shape
    dim, dtype = (dv if part == "v" else d), planner.buffers[source].dtype
    out_dtype = "float32" if part == "k_exact" else planner.sizes.dtype
    out = planner.temporary(memory, part, (b, length, heads, dim), out_dtype)
    spec = Summarise(
        name=f"summarise_{out}",
        x=source,
        out=out,
        heads=planner.sizes.value(heads),
        dim=planner.sizes.value(dim),
        size=memory.integer("size"),
        stride=memory.integer("stride"),
        length="N",
        fn=str(memory["fn"]),
        dtype=dtype,
        out_dtype=out_dtype,
    )
    planner.summaries[memory, part.removesuffix("_exact")] = spec
    planner.add(spec, [source], [out], [memory], {"N": length, "TK": inner.length, "TQ": inner.length})
    return out
