"""What the plan hands to a lowering: one frozen value per kernel, naming its tensors and saying what it computes.

A spec knows sizes that are fixed when a kernel is built (heads, head dims, chunk, k); lengths, batch and strides are
launch parameters. Predicates are expressions over ``b`` (batch), ``h`` (query head), ``i`` (query position) and ``j``
(key position in the memory) or ``c`` (chunk). Layouts: activations ``[B, T, heads, D]``, learned slots
``[M, heads, D]``, indices and weights ``[B, TQ, HS, K]``, log-sum-exp ``[B, TQ, H]``; the printers address them by
stride.

Every program may use the launch parameters ``B``, ``TQ``, ``TK``, ``q_offset`` (position of query row 0), the lengths
that a spec names, and other dims that a declaration's predicates read as ``dim_…`` (see ``DIM``).
"""

from __future__ import annotations

from dataclasses import dataclass

from sparsec.plan.selection.parents import Parents
from sparsec.scalar.expr import Expr

DIM = "dim_"
"""What the launch parameters of a declaration's own dims begin with: ``dim_M`` is the declaration's M."""


@dataclass(frozen=True, slots=True)
class Capture:
    """A captured tensor that a predicate or score function reads; an index outside it reads the nearest element.

    Attributes:
        shape: extents as numbers or launch parameters; empty where indices are known to lie inside.
    """

    name: str
    dtype: str
    rank: int
    shape: tuple[int | str, ...] = ()


@dataclass(frozen=True, slots=True)
class Piece:
    """One dense range of keys under the common softmax of a tiled attention.

    Attributes:
        where: visible keys, over b, h, i, j; None means all of them.
        length: the launch parameter with the number of keys.
        bias: the score as a function of score, b, h, i, j; None leaves it alone.
        batched: false for learned slots ``[M, HKV, D]``.
        size: the number of keys if the declaration fixes it.
        listed: the block list of a ``where`` that cannot be bounded, or one that the declaration gives, of which
            ``where`` hides more; see ``BlockList``.
    """

    k: str
    v: str
    length: str
    where: Expr | None = None
    bias: Expr | None = None
    captures: tuple[Capture, ...] = ()
    batched: bool = True
    size: int | None = None
    listed: BlockList | None = None


@dataclass(frozen=True, slots=True)
class TiledAttention:
    """Softmax attention of every query over the union of dense pieces -> out ``[B,TQ,H,DV]``, lse ``[B,TQ,H]`` fp32.

    Attributes:
        out_dtype: the dtype of ``out`` where it is not ``dtype`` (fp32 branches that a Combine merges).
        sink: None; "zero" (softmax-off-by-one: a logit of 0 in the denominator); else the tensor ``[H]`` of sink
            logits.
        softcap: c in ``c * tanh(score / c)``, applied before the bias; None for none.
    """

    name: str
    q: str
    pieces: tuple[Piece, ...]
    out: str
    lse: str | None
    heads: int
    kv_heads: int
    head_dim: int
    value_dim: int
    scale: float
    dtype: str
    softcap: float | None = None
    sink: str | None = None
    out_dtype: str | None = None


@dataclass(frozen=True, slots=True)
class GatheredAttention:
    """Attention of each query over its own list of chunks.

    ``indices[b, t, s, :]`` are chunk ids (-1: nothing) for scope ``s``; tokens of chunk c are
    ``c*chunk … (c+1)*chunk-1`` below TK. ``per = joint``: one softmax over the visible tokens of all chosen chunks.
    ``per = chunk``: a softmax inside each chunk (``sink`` applies inside each), then ``sum_k weights[k] * o_k``; lse
    is then not defined.

    Attributes:
        scope: "kv_head" (indices per key/value head), "head" (per query head) or "token" (one list for all heads).
        slots: k, the length of a list.
        where: token predicate inside a chosen chunk, over b, h, i, j.
        out_dtype: the dtype of ``out`` where it is not ``dtype``.
        counts: an int32 tensor ``[B,TQ,HS]``: only the first so many slots count; None: all.
        own_first: whether the chunk at a query's own position, where there is one, stands in the first slot; lists of
            queries before position 0 are empty then.
    """

    name: str
    q: str
    k: str
    v: str
    indices: str
    weights: str | None
    out: str
    lse: str | None
    scope: str
    slots: int
    chunk: int
    heads: int
    kv_heads: int
    head_dim: int
    value_dim: int
    scale: float
    dtype: str
    per: str = "joint"
    where: Expr | None = None
    bias: Expr | None = None
    captures: tuple[Capture, ...] = ()
    counts: str | None = None
    softcap: float | None = None
    sink: str | None = None
    out_dtype: str | None = None
    own_first: bool = False


@dataclass(frozen=True, slots=True)
class Pool:
    """From summary scores to block scores.

    ``kind = overlap``: the sum over summaries ``r*c + m - n`` for 0 <= m < r, 0 <= n < size/stride, r = block/stride;
    ``paper_literal``: summaries ``r*c - m - n``; ``max``, ``sum``, ``mean``: over ``kernel`` summaries from
    ``c*stride_blocks - padding``. Summaries that do not exist contribute nothing.
    """

    kind: str
    size: int
    stride: int
    block: int
    kernel: int = 0
    stride_blocks: int = 0
    padding: int = 0


@dataclass(frozen=True, slots=True)
class Selector:
    """Score, reduce over the group, pool, keep a running top-k; nothing of size T x T/C is written.

    scores[h, n] = scale * q[h] . keys[kv(h), n], or their ``cosine``; with ``softmax`` they become per-head
    probabilities over the summaries with ``visible``; ``group`` sums or means them over the heads of a key/value head;
    ``pool`` maps summaries to blocks. Eligible blocks rank by (forced, score, lower id); slots left over are -1.
    ``order`` sorts the chosen: ``newest`` by descending id, ``oldest`` ascending with -1 last, ``score`` by rank.

    Attributes:
        key_length: the launch parameter with the number of summaries; ``block_length`` with the number of blocks.
        visible, eligible, forced: over i and c, blocks but for ``visible``: summaries, which else no pool has.
        weights: None, "softmax", "softmax_sink", "stick", "sigmoid" or "raw" over the chosen scores, or "softmax_all":
            their share of a softmax over all that is eligible; fp32, 0 where id is -1.
        batched: false for learned keys ``[N, HKV, D]``, the same for every batch entry.
        key_dtype: of ``keys`` where it is not ``dtype``: fp32 for computed summaries, lest rounding change the choice.
        count_forced: whether forced members use up k; if not, k counts the free slots and ``slots`` all.
        head_weights: of an indexer ``[B,TQ,H]``: scale * the heads' sum of weight * max(q . key, 0), one list for all.
        hard_out: a straight-through choice's 1 for what was chosen; ``scores_out``: its scores, for a backward; else 0.
        bias: over score, b, h (the list), i, j (the block) and ``captures``: what becomes of a block's score.
        query_block: so many queries, counted from row 0, share the list of their first; such a spec has no weights.
        parents: lists of larger units, whose children alone may be chosen; "softmax_all" is over all eligible even so.
    """

    name: str
    q: str
    keys: str
    indices: str
    weights_out: str | None
    heads: int
    kv_heads: int
    dim: int
    key_length: str
    block_length: str
    scale: float
    k: int
    slots: int
    dtype: str
    softmax: bool = False
    visible: Expr | None = None
    group: str | None = None
    pool: Pool | None = None
    eligible: Expr | None = None
    forced: Expr | None = None
    count_forced: bool = True
    order: str = "score"
    weights: str | None = None
    key_dtype: str | None = None
    batched: bool = True
    head_weights: str | None = None
    hard_out: str | None = None
    scores_out: str | None = None
    bias: Expr | None = None
    captures: tuple[Capture, ...] = ()
    cosine: bool = False
    parents: Parents | None = None
    query_block: int = 1


@dataclass(frozen=True, slots=True)
class Summarise:
    """Mean or max of windows: out[b, n, h] over tokens n*stride … n*stride + size - 1 below TK; ``length`` counts n."""

    name: str
    x: str
    out: str
    heads: int
    dim: int
    size: int
    stride: int
    length: str
    fn: str
    dtype: str
    out_dtype: str


@dataclass(frozen=True, slots=True)
class Combine:
    """Row by row: out = merge of branches ``[B,TQ,H,DV]``.

    ``fn = gated``: sum of gate_i * o_i; ``sum``; ``convex``: g * o_0 + (1 - g) * o_1; ``lse``: the joint softmax of
    disjoint sets from (o_i, lse_i), writing its own lse; ``weighted``: as gated, with one tensor
    ``[B,TQ,H,branches]`` of gates, without a function. A gate is ``[B,TQ,H]`` of its own of ``gate_dtypes`` (none:
    ``dtype``); ``gate_fn`` is applied to it (over x0), if given. Branches are of
    ``branch_dtypes`` (none: fp32), out is ``dtype``.
    """

    name: str
    fn: str
    branches: tuple[str, ...]
    gates: tuple[str, ...]
    lses: tuple[str, ...]
    out: str
    lse: str | None
    heads: int
    value_dim: int
    dtype: str
    gate_fn: Expr | None = None
    branch_dtypes: tuple[str, ...] = ()
    gate_dtypes: tuple[str, ...] = ()

    @property
    def typed(self) -> tuple[tuple[str, str], ...]:
        """Every branch with its dtype."""
        return tuple(zip(self.branches, self.branch_dtypes or ("float32",) * len(self.branches), strict=True))


@dataclass(frozen=True, slots=True)
class BlockList:
    """Per query tile, the key tiles that it goes to: those with any pair that ``where`` shows, or a given list.

    Writes ids ``[B', H', query_tiles, key_tiles]`` int32 (first ``count`` valid, ascending) and counts ``[B', H',
    query_tiles]``; B' and H' are 1 where the predicate does not read b or h. Query head h reads list h // (H / H').

    Attributes:
        given: lists that the declaration gives, int32 ``[B, query_tiles, H', slots]`` with -1 pads, in place of what
            ``where`` shows; ids are then ``[B, H', query_tiles, slots]``, in the list's order.
        whole: of given lists: how many tiles ``where`` hides nothing of, shaped like counts; they come first.
        given_counts: int32 ``[B, query_tiles, H']``: how many slots count; None: all.
        transposed: list, per key tile (``block_k``), the query tiles (``block_q``) with any visible pair instead:
            ids ``[B', H', key_tiles, query_tiles]``.
    """

    name: str
    where: Expr | None
    captures: tuple[Capture, ...]
    ids: str
    counts: str
    length: str
    block_q: int
    block_k: int
    per_batch: bool
    heads: int
    transposed: bool = False
    given: str | None = None
    given_counts: str | None = None
    slots: int = 0
    whole: str | None = None

    @property
    def buffers(self) -> tuple[str, ...]:
        """What it writes."""
        return (self.ids, self.counts) if self.whole is None else (self.ids, self.counts, self.whole)


Spec = TiledAttention | GatheredAttention | Selector | Summarise | Combine | BlockList
