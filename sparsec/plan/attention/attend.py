"""Matchers of attends: dense pieces become tiled attention, lists of chunks become gathered attention."""

from __future__ import annotations

from dataclasses import replace
from functools import reduce

from sparsec.ir.node import Node
from sparsec.ir.op import Op
from sparsec.plan.attention.memories import hold
from sparsec.plan.honours import honours
from sparsec.plan.maps.prefix import prefix
from sparsec.plan.planner import Planner
from sparsec.plan.selection.select import own_first, select
from sparsec.plan.selection.shared import members
from sparsec.plan.specs import BlockList, Capture, GatheredAttention, Piece, TiledAttention
from sparsec.plan.states.evict import evict
from sparsec.scalar.bounds import Bounded, key_ranges
from sparsec.scalar.expr import Expr, constant
from sparsec.scalar.walk import tensors, variables

LIST_TILE = 64
"""Rows and keys of a block list's tiles; schedules use tiles that divide it."""


TENSOR_CORE = 16
"""What tiles of rows and keys are multiples of."""


def lists(attend: Node) -> list[Node]:
    """The selections of an attend that are lists of units, one per query."""
    return [s for s in attend.positional[2:] if s.op is not Op.MASK and not by_block(s)]


def by_block(selection: Node) -> bool:
    """Whether a selection is a list of chunks for every block of queries."""
    return selection.op is Op.GIVEN and selection.integer("query_block") > 1


def visible(planner: Planner, attend: Node, params: dict[str, Expr]) -> Expr | None:
    """The masks of an attend as one predicate; dims that it reads join the kernel's ``params``."""
    masks = [s.expr("where") for s in attend.positional[2:] if s.op is Op.MASK]
    found = [planner.close(m, params) for m in masks if m is not None]
    return reduce(lambda a, b: a & b, [f for f in found if f is not None]) if found else None


def sink_of(planner: Planner, attend: Node) -> str | None:
    """None, "zero" or the buffer of sink logits."""
    if attend["sink"] == "given":
        return planner.input(attend.operands["sink"])
    return None if attend["sink"] == "none" else "zero"


def number(planner: Planner, attend: Node) -> float:
    """The softmax scale."""
    scale = attend.expr("scale")
    assert scale is not None
    return planner.sizes.number(scale)


def joinable(attends: list[Node]) -> str | None:
    """Why attends cannot share one online softmax; None if they can."""
    first = attends[0]
    for a in attends:
        if a.op is not Op.ATTEND or a["per"] != "joint" or lists(a):
            return "a branch is not a dense softmax"
        if (
            a.src[0] is not first.src[0]
            or a.expr("scale") is not first.expr("scale")
            or a["softcap"] != first["softcap"]
        ):
            return "branches differ in queries, scale or soft cap"
        if a["sink"] != "none":
            return "a branch has a sink of its own"
    return None


def tiled(planner: Planner, attends: list[Node], owner: Node, wants_lse: bool, out_dtype: str) -> None:
    """One kernel for the joint softmax of dense attends; its output belongs to ``owner``."""
    sizes, first = planner.sizes, attends[0]
    for attend in attends:
        honours(planner, attend, "scale", "softcap", "sink", "bias")
    q, params = first.src[0], {"TQ": first.src[0].shape[1], "TK": planner.token_length}
    pieces = [_piece(planner, a, k, params) for k, a in enumerate(attends)]
    out = planner.temporary(owner, "o", owner.shape, out_dtype)
    lse = planner.temporary(owner, "lse", owner.shape[:3], "float32") if wants_lse else None
    memory, softcap = first.src[1], first["softcap"]
    spec = TiledAttention(
        name=f"attend_{out}",
        q=planner.input(q),
        pieces=tuple(pieces),
        out=out,
        lse=lse,
        heads=sizes.value(q.shape[2]),
        kv_heads=sizes.value(memory.shape[2]),
        head_dim=sizes.value(memory.shape[3]),
        value_dim=sizes.value(memory.shape[4]),
        scale=number(planner, first),
        dtype=sizes.dtype,
        softcap=softcap if isinstance(softcap, float) else None,
        sink=sink_of(planner, first),
        out_dtype=None if out_dtype == sizes.dtype else out_dtype,
    )
    reads = [spec.q, *(b for p in pieces for b in (p.k, p.v, *(c.name for c in p.captures)))]
    reads += [b for p in pieces if p.listed for b in p.listed.buffers]
    reads += [spec.sink] if spec.sink not in (None, "zero") and spec.sink else []
    planner.specs[owner] = spec
    covers = dict.fromkeys([*attends, owner])
    planner.add(spec, reads, [out, *([lse] if lse else [])], covers, params)


def _piece(planner: Planner, attend: Node, position: int, params: dict[str, Expr]) -> Piece:
    memory = attend.src[1]
    held = hold(planner, memory)
    if held.v is None:
        raise planner.refuse(attend, "its memory holds no values")
    # TK counts the tokens that query positions count along; the tokens of another memory have a length of their own.
    length = "TK" if held.length is planner.token_length else f"N{position}"
    params[length] = held.length
    where, bias = visible(planner, attend, params), planner.close(attend.expr("bias"), params)
    captures = _captures(planner, attend, params)
    size = held.length.value if held.length.head == "const" else None
    piece = Piece(held.k, held.v, length, where, bias, captures, held.batched, size if isinstance(size, int) else None)
    given = next((s for s in attend.positional[2:] if by_block(s)), None)
    return (
        _with_list(planner, attend, piece, params) if given is None else _given(planner, attend, given, piece, params)
    )


def _given(planner: Planner, attend: Node, given: Node, piece: Piece, params: dict[str, Expr]) -> Piece:
    """The piece with the block list that the declaration gives, its -1 taken out."""
    rows, keys = given.integer("query_block"), given.integer("size")
    if attend.src[1].op is not Op.TOKENS or given["unit"] != "chunk" or rows % TENSOR_CORE or keys % TENSOR_CORE:
        what = f"query_block = {rows}, unit = {given['unit']}, size = {keys} of {attend.src[1].op.value}"
        raise planner.refuse(attend, f"{what}: lists per block of queries name chunks of tokens, in multiples of 16")
    counts = given.operands.get("counts")
    b, blocks, heads, slots = given.shape
    name = planner.name(attend)
    ids = planner.temporary(attend, "tiles", [b, heads, blocks, slots], "int32")
    found = planner.temporary(attend, "tile_counts", [b, heads, blocks], "int32")
    known = piece.where is None or set(variables(piece.where)) <= {"i", "j", "TQ", "TK", "q_offset", piece.length}
    plain = known and (piece.where is None or not tensors(piece.where))
    spec = BlockList(
        name=f"blocks_{name}",
        where=piece.where if plain else None,
        captures=(),
        ids=ids,
        counts=found,
        length=piece.length,
        block_q=rows,
        block_k=keys,
        per_batch=True,
        heads=planner.sizes.value(heads),
        given=planner.input(given.src[0]),
        given_counts=planner.input(counts) if counts is not None else None,
        slots=planner.sizes.value(slots),
        whole=planner.temporary(attend, "whole_tiles", [b, heads, blocks], "int32") if plain else None,
    )
    dims = {name: value for name, value in params.items() if name in ("TQ", "TK", piece.length)}
    planner.add(spec, [x for x in (spec.given, spec.given_counts) if x], list(spec.buffers), [given], dims)
    return replace(piece, listed=spec)


def _captures(planner: Planner, attend: Node, params: dict[str, Expr]) -> tuple[Capture, ...]:
    """The tensors that an attend's bias and masks read."""
    nodes = (attend, *attend.positional[2:])
    for name, source in (pair for n in nodes for pair in n.captures.items()):
        if source.op is Op.PREFIX:
            prefix(planner, source, name)
        elif source.op is Op.EVICT:
            evict(planner, source, name)
        elif source.op is Op.MEMBERS:
            members(planner, source, name)
    found = [c for n in nodes for c in planner.captures(n, params)]
    return tuple({c.name: c for c in found}.values())


def _with_list(planner: Planner, attend: Node, piece: Piece, params: dict[str, Expr]) -> Piece:
    """The piece with a block list, where its mask cannot be bounded or leaves most of the bounded keys out."""
    if piece.where is None:
        return piece
    found = key_ranges(piece.where)
    sparse = isinstance(found, Bounded) and any(r.sparse_residual for r in found.ranges)
    if isinstance(found, Bounded) and not sparse:
        return piece
    why = "it leaves holes in the keys that it bounds" if isinstance(found, Bounded) else found.reason
    planner.notes.append(f"the mask of {planner.name(attend)} is read from a block list: {why}")
    return _listed(planner, attend, piece, params)


def _listed(planner: Planner, attend: Node, piece: Piece, params: dict[str, Expr]) -> Piece:
    assert piece.where is not None
    used = variables(piece.where)
    q, name = attend.src[0], planner.name(attend)
    heads = planner.sizes.value(q.shape[2]) if "h" in used else 1
    per_batch = "b" in used
    tiles = [(q.shape[1] + (LIST_TILE - 1)) // LIST_TILE, (attend.src[1].shape[1] + (LIST_TILE - 1)) // LIST_TILE]
    lead = [q.shape[0] if per_batch else constant(1), constant(heads)]
    ids = planner.temporary(attend, "tiles", [*lead, *tiles], "int32")
    counts = planner.temporary(attend, "tile_counts", [*lead, tiles[0]], "int32")
    needed = tuple(c for c in piece.captures if c.name in tensors(piece.where))
    spec = BlockList(
        name=f"blocks_{name}",
        where=piece.where,
        captures=needed,
        ids=ids,
        counts=counts,
        length=piece.length,
        block_q=LIST_TILE,
        block_k=LIST_TILE,
        per_batch=per_batch,
        heads=heads,
    )
    named = {"TQ", "TK", piece.length, *used, *(extent for c in needed for extent in c.shape)}
    dims = {name: value for name, value in params.items() if name in named}
    masks = [s for s in attend.positional[2:] if s.op is Op.MASK]
    planner.add(spec, [c.name for c in needed], [ids, counts], masks, dims)
    return replace(piece, listed=spec)


def memory_of_units(attend: Node) -> Op:
    """What kind of memory a list of units is read from."""
    return attend.src[1].op


def scope_of(selection: Node, q: Node, memory: Node) -> str:
    """Who shares a list: all heads of a token, those of a key/value head, or nobody."""
    heads = selection.shape[2]
    found = {q.shape[2]: "head", memory.shape[2]: "kv_head", constant(1): "token"}
    return found.get(heads, str(selection["scope"]))


def gathered(planner: Planner, attend: Node, wants_lse: bool, out_dtype: str) -> None:
    """One kernel for an attend over lists of chunks, after the selector that makes the lists."""
    sizes, (selection, *more) = planner.sizes, lists(attend)
    if more:
        raise planner.refuse(
            attend, "reads two lists of chunks at once; attend to each and merge by log-sum-exp if disjoint"
        )
    if selection["scope"] == "query_set" or memory_of_units(attend) is not Op.TOKENS:
        raise planner.refuse(attend, "lists of chunks and tokens are read; one list for all queries has no kernel yet")
    honours(planner, attend, "per", "scale", "softcap", "sink", "bias")
    q, memory = attend.src[:2]
    held = hold(planner, memory)
    assert held.v is not None
    indices, weights = select(planner, selection, attend.operands.get("weights"))
    out = planner.temporary(attend, "o", attend.shape, out_dtype)
    lse = planner.temporary(attend, "lse", attend.shape[:3], "float32") if wants_lse else None
    counts = selection.operands.get("counts") if selection.op is Op.GIVEN else None
    softcap, scope = attend["softcap"], scope_of(selection, q, memory)
    dims = {"TQ": q.shape[1], "TK": held.length}
    captures = _captures(planner, attend, dims)
    spec = GatheredAttention(
        name=f"attend_{out}",
        q=planner.input(q),
        k=held.k,
        v=held.v,
        indices=indices,
        weights=weights,
        out=out,
        lse=lse,
        scope=scope,
        slots=sizes.value(selection.shape[3]),
        chunk=selection.integer("size"),
        heads=sizes.value(q.shape[2]),
        kv_heads=sizes.value(memory.shape[2]),
        head_dim=sizes.value(memory.shape[3]),
        value_dim=sizes.value(memory.shape[4]),
        scale=number(planner, attend),
        dtype=sizes.dtype,
        per=str(attend["per"]),
        where=visible(planner, attend, dims),
        bias=planner.close(attend.expr("bias"), dims),
        captures=captures,
        counts=planner.input(counts) if counts is not None else None,
        softcap=softcap if isinstance(softcap, float) else None,
        sink=sink_of(planner, attend),
        out_dtype=None if out_dtype == sizes.dtype else out_dtype,
        own_first=own_first(selection, held.length),
    )
    planner.specs[attend] = spec
    reads = [spec.q, spec.k, spec.v, indices, *(b for b in (weights, spec.counts) if b), *(c.name for c in captures)]
    covers = [attend, *(s for s in attend.positional[2:])]
    planner.add(spec, reads, [out, *([lse] if lse else [])], covers, dims)
