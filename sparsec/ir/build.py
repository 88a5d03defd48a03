"""Constructors of memories, scores, selections, reads and merges. All raise ``DeclarationError``; shapes are inferred.

Shapes: q ``[B,TQ,H,D]``, k ``[B,TK,HKV,D]``, v ``[B,TK,HKV,DV]``; scores ``[B,TQ,HS,N]``; a list of chosen units
``[B,TQ,HS,K]``; an output ``[B,TQ,H,DV]``. An expression is text, a number, a traced Python function or an ``Expr``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from sparsec.ir.make import make
from sparsec.ir.node import Node
from sparsec.ir.op import Op
from sparsec.ir.shape import parse_shape
from sparsec.scalar.expr import Expr

Expression = Expr | str | int | float | bool | Callable[..., object]


def input(name: str, shape: str | Sequence[str | int | Expr], dtype: str = "float") -> Node:
    """A tensor that the caller gives; the shape is text such as "B TQ H D" or a sequence of dims."""
    dims, stated = parse_shape(shape)
    return make(Op.INPUT, (), name=name, shape=dims, dtype=stated or dtype)


def map(*x: Node, fn: Expression | None = None, row: str = "none", top: int | None = None, align: str = "none") -> Node:
    """``fn`` of x0, x1, … elementwise, broadcast from the last dim; ``row`` (softmax, l2norm) is applied before.

    With ``top`` a softmax is one over the ``top`` largest elements of a row, ties to the lower index, and 0 elsewhere;
    ``row = chosen`` is 1 at them and 0 elsewhere, without a gradient.

    ``align = heads``: what has fewer dims, ``[B,T,H]`` or ``[H]``, is one number for a row ``[B,T,H,D]`` of the others.
    """
    return make(Op.MAP, x, fn=fn, row=row, top=top, align=align)


def prefix(x: Node, *, fn: Expression | None = None) -> Node:
    """The sum of ``fn`` of x0 over the tokens up to each one: ``[B,T,H]`` -> ``[B,T,H]`` fp32. FoX, 2503.02130."""
    return make(Op.PREFIX, (x,), fn=fn)


def tokens(k: Node, v: Node | None = None, *, chunk: int | None = None) -> Node:
    """Keys and values of a sequence -> memory; ``chunk`` is the tokens per chunk that selections refer to."""
    return make(Op.TOKENS, (k,) if v is None else (k, v), chunk=chunk)


def slots(k: Node, v: Node, *, origin: str = "learned") -> Node:
    """Persistent vectors ``[M,HKV,D]`` (learned, arXiv 1907.01470) or ``[B,M,HKV,D]`` (carried) -> memory."""
    return make(Op.SLOTS, (k, v), origin=origin)


def summary(
    memory: Node,
    given: Node | None = None,
    *,
    size: int,
    stride: int | None = None,
    fn: str = "mean",
    fields: str = "k",
) -> Node:
    """Windows of ``size`` tokens every ``stride`` -> memory of ceil(TK / stride) summaries, the last ones ragged.

    Without a stride windows lie one after another.
    """
    src = (memory,) if given is None else (memory, given)
    return make(Op.SUMMARY, src, fn=fn, size=size, stride=stride, fields=fields)


def score(
    q: Node,
    keys: Node,
    *,
    fn: str = "dot",
    scale: Expression | None = None,
    detach: bool = False,
    rounding: str = "none",
    head_weights: Node | None = None,
) -> Node:
    """Queries against a memory's keys or a tensor ``[B,N,HKV,D]`` or ``[N,HKV,D]`` -> scores; scale D**-0.5.

    ``rounding = storage`` reads summaries as an attention does, in the dtype of the inputs; ``none`` as they are.
    """
    attrs = {"fn": fn, "scale": scale, "detach": detach, "rounding": rounding}
    return make(Op.SCORE, (q, keys), {"head_weights": head_weights}, **attrs)


def bias(scores: Node, *, fn: Expression, **captures: Node) -> Node:
    """A function of score, b, h, i, j (j counts columns) and captured tensors -> scores."""
    return make(Op.BIAS, (scores,), captures, fn=fn)


def reduce(
    scores: Node,
    *,
    over: str,
    op: str = "sum",
    pre: str = "none",
    visible: Expression | None = None,
    size: int | None = None,
    stride: int | None = None,
    block: int | None = None,
    importance: str | None = None,
    kernel: int | None = None,
    padding: int | None = None,
) -> Node:
    """Fewer scores: over heads of a group, all heads, overlapping summaries (NSA), pooled blocks (InfLLM-v2), queries.

    ``pre = softmax`` makes probabilities per head first, over what ``visible`` (of i and column c) admits.
    ``importance`` (overlap, paper_literal) says which summaries a block collects.
    """
    sizes = {"size": size, "stride": stride, "block": block, "kernel": kernel, "padding": padding}
    return make(Op.REDUCE, (scores,), over=over, op=op, pre=pre, visible=visible, importance=importance, **sizes)


def mask(memory: Node, *, where: Expression, **captures: Node) -> Node:
    """A predicate over b, h, i (query position), j (key position in the memory) and captured tensors -> selection."""
    return make(Op.MASK, (memory,), captures, where=where)


def topk(
    scores: Node,
    *,
    k: int,
    slots: int | None = None,
    unit: str = "chunk",
    size: int = 1,
    scope: str = "kv_head",
    query_block: int = 1,
    eligible: Expression | None = None,
    forced: Expression | None = None,
    count_forced: bool = True,
    order: str = "score",
    selector_gradient: str = "none",
    tie: str = "lowest",
    fanout: int | None = None,
    within: Node | None = None,
) -> Node:
    """The k best units per query and scope -> list; eligible and forced are predicates over i and column c.

    Forced members rank above all; where they do not count in k, ``slots`` is the list's length. Surplus slots are -1.
    """
    sizes = {"k": k, "slots": slots, "size": size, "query_block": query_block, "fanout": fanout}
    rules = {"eligible": eligible, "forced": forced, "count_forced": count_forced, "order": order, "tie": tie}
    words = {"unit": unit, "scope": scope, "selector_gradient": selector_gradient}
    return make(Op.TOPK, (scores,), {"within": within}, **sizes, **rules, **words)


def members(selection: Node) -> Node:
    """Which units a list for all queries (scope = query_set) holds: 1 or 0 per unit, int32 ``[B,N]``, for masks."""
    return make(Op.MEMBERS, (selection,))


def given(
    indices: Node,
    *,
    counts: Node | None = None,
    unit: str = "chunk",
    size: int = 1,
    query_block: int = 1,
    scope: str = "kv_head",
    order: str = "score",
) -> Node:
    """A list from outside: indices int32 ``[B,TQ,HS,K]`` with -1 pads, counts int32 ``[B,TQ,HS]``.

    With ``query_block = Q`` the queries of a block, counted from row 0, share a list: ceil(TQ / Q) in place of TQ.
    """
    how = {"unit": unit, "size": size, "query_block": query_block, "scope": scope, "order": order}
    return make(Op.GIVEN, (indices,), {"counts": counts}, **how)


def weights(scores: Node, selection: Node, *, fn: str = "softmax", renormalise: bool = True) -> Node:
    """One fp32 weight per chosen unit ``[B,TQ,HS,K]``: softmax, softmax_sink (off by one), stick (HSA), sigmoid, raw.

    With ``renormalise = False`` a softmax runs over all eligible units before the cut (SSE). Empty slots weigh 0.
    """
    return make(Op.WEIGHTS, (scores, selection), fn=fn, renormalise=renormalise)


def attend(
    q: Node,
    memory: Node,
    *selection: Node,
    weights: Node | None = None,
    sink: Node | str = "none",
    per: str = "joint",
    scale: Expression | None = None,
    softcap: float | None = None,
    bias: Expression | None = None,
    empty: str = "zero",
    **captures: Node,
) -> Node:
    """Softmax attention over what one list and any masks admit -> output ``[B,TQ,H,DV]``; see ``lse``.

    ``per = chunk``: a softmax inside each chosen chunk, outputs summed by ``weights`` (HSA, arXiv 2504.16795).
    ``sink`` is "none", "zero" (a logit of 0 in the denominator) or a tensor of logits ``[H]``. Empty rows give 0.
    """
    logits = sink if isinstance(sink, Node) else None
    named = {"weights": weights, "sink": logits, **captures}
    form = {"per": per, "sink": "given" if logits is not None else sink, "empty": empty}
    return make(Op.ATTEND, (q, memory, *selection), named, **form, scale=scale, softcap=softcap, bias=bias)


def lse(output: Node) -> Node:
    """The log-sum-exp ``[B,TQ,H]`` fp32 of a joint attend or of a merge by lse; -inf where nothing was seen."""
    return make(Op.LSE, (output,))


def merge(*outputs: Node, fn: str, gates: Node | Sequence[Node] = ()) -> Node:
    """Outputs -> one: lse (joint softmax of disjoint sets), sum, gated or convex (gates ``[B,TQ,H]``), weighted, …"""
    return make(Op.MERGE, (*outputs, *((gates,) if isinstance(gates, Node) else gates)), fn=fn)


def vjp(primal: Node, *cotangents: Node, of: str, capture: str | None = None, lse_grad: Node | None = None) -> Node:
    """The gradient of one source of ``primal``, given that of its result: shaped like the source.

    ``of``: q, k, v, weights, sink of an attend; k, v, given of a summary (its memory's fields); q, keys, head_weights
    of a score; scores of a bias, reduce, weights, aux or straight-through topk, and ``list`` of an attend that reads
    one: the gradient of a factor of 1 on every chosen unit; x of a prefix; x0, x1, … of a map or merge, gates included,
    and lse0, lse1, … of a merge by lse. ``of = capture`` is a tensor that a bias captures, by name. ``lse_grad``
    ``[B,TQ,H]`` belongs to the primal's log-sum-exp.

    States: q, kappa, level_bias, level_gate, state0, state1, … of a recall; k, v, beta, decay, weight, erase_a,
    erase_b, state of a write; initial of a state. A write takes any number of cotangents: what its readers hand back,
    which is ``vjp(recall, grad) {of = state0}``, and a tensor for the states after the last token.
    """
    return make(Op.VJP, (primal, *cotangents), {"lse_grad": lse_grad}, of=of, capture=capture)
