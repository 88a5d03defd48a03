"""Specs of backward kernels: what the plan hands to their lowerings. Conventions as in ``sparsec.plan.specs``.

A backward kernel names the spec of the forward kernel that it belongs to, so masks, biases, scales and the buffers of
what was read are said once. ``forward.lse`` is always set. With ``s`` the natural logit of a pair after scale, soft cap
and bias, ``p = exp(s - lse)`` (0 for hidden pairs and for rows that see nothing, whose lse is -inf), ``do`` the
gradient of the output, ``dp = do . v``, ``delta = rowdot(do, o) - dlse``: ``ds = p * (dp - delta)`` is the gradient of
``s``. It goes through the derivative of bias and soft cap to ``dr``, the gradient of ``scale * q . k``.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from sparsec.plan.attention.capture_specs import GatheredGradCapture
from sparsec.plan.attention.sink_specs import ChunkSinkGrad
from sparsec.plan.maps.map_specs import Map, MapGrad
from sparsec.plan.maps.prefix_specs import Prefix, PrefixGrad
from sparsec.plan.maps.row_specs import RowLse
from sparsec.plan.selection.pooled_specs import PooledGrad
from sparsec.plan.selection.shared_specs import Members, SetSelector
from sparsec.plan.selection.signal_specs import Divergence, IndexGrad, ListSum
from sparsec.plan.specs import BlockList, Combine, GatheredAttention, Selector, Spec, Summarise, TiledAttention
from sparsec.plan.states.evict_specs import Evict
from sparsec.plan.states.fenwick_specs import Ladder, LadderGrad
from sparsec.plan.states.mixture_specs import AnyMixture, AnyMixtureGrad
from sparsec.plan.states.route_specs import Balance, Router, RouterGrad
from sparsec.plan.states.scan_specs import Scan, ScanGrad, StatesSum


@dataclass(frozen=True, slots=True)
class RowDot:
    """delta ``[B,TQ,H]`` fp32 = sum over DV of out * grad, less ``lse_grad``; and the gradient of sink logits.

    Attributes:
        out, out_dtype: the attention's output ``[B,TQ,H,DV]`` as it was stored.
        grad, grad_dtype: the gradient of that output.
        lse_grad: the gradient of the log-sum-exp, fp32 ``[B,TQ,H]``; None for zero.
        sink, lse, sink_grad: with them set, sink_grad ``[H]`` fp32 = - sum over batch and rows of
            exp(sink - lse) * delta.
    """

    name: str
    out: str
    grad: str
    delta: str
    heads: int
    value_dim: int
    out_dtype: str
    grad_dtype: str
    lse_grad: str | None = None
    sink: str | None = None
    lse: str | None = None
    sink_grad: str | None = None


@dataclass(frozen=True, slots=True)
class TiledGradQ:
    """grad_q ``[B,TQ,H,D]`` = scale * sum of dr * k over all keys, rounded once; ``dots`` as in ``GatheredGradQ``."""

    name: str
    forward: TiledAttention
    grad: str
    delta: str
    grad_q: str
    grad_dtype: str
    out_dtype: str
    dots: bool = False


@dataclass(frozen=True, slots=True)
class TiledGradKV:
    """Gradients of the keys and values of one piece, shaped like them: ``[B,N,HKV,D]`` or, not batched, ``[M,HKV,D]``.

    grad_v = sum of p * do, grad_k = scale * sum of dr * q, over the queries (and the heads of the group, and the batch
    where the piece is not batched) that see a key. No two kernels add to one place: the result does not depend on the
    order in which programs run.

    Attributes:
        piece: its number in ``forward.pieces``.
        grad_k, grad_v: None where that gradient is not asked for; one of them is.
        listed: where the forward piece has a block list: the query tiles of each key tile (``transposed``).
        ragged: whether batches have lengths of their own, so that keys without a batch must visit them one by one.
    """

    name: str
    forward: TiledAttention
    piece: int
    grad: str
    delta: str
    grad_k: str | None
    grad_v: str | None
    grad_dtype: str
    out_dtype: str
    listed: BlockList | None = None
    ragged: bool = field(default=False, repr=False)


@dataclass(frozen=True, slots=True)
class TiledGradCapture:
    """The gradient of one captured tensor that a piece's bias reads: fp32, shaped like it.

    The sum over visible pairs of ds * d bias / d element, each added at the element's index; a piece whose bias does
    not read it adds nothing. Additions are atomic where programs run at the same time, so their order is not fixed.

    Attributes:
        shape: the tensor's dims, as numbers or names of launch parameters.
    """

    name: str
    forward: TiledAttention
    capture: str
    shape: tuple[int | str, ...]
    grad: str
    delta: str
    grad_capture: str
    grad_dtype: str


@dataclass(frozen=True, slots=True)
class GatheredGradQ:
    """grad_q ``[B,TQ,H,D]`` of gathered attention, and the gradient of its chunk weights where it has them.

    ``per = joint``: as ``TiledGradQ``, over the keys of the chosen chunks. ``per = chunk``: with p the softmax inside
    one chunk (and its sink), c = sum of p * dp over the chunk: ds = weight * p * (dp - c), and the weight's gradient is
    the sum of c over the heads that share the list. Needs neither lse nor delta, which are None then.

    Attributes:
        grad_weights: fp32 ``[B,TQ,HS,K]``, 0 where the index is -1; None where not asked for.
        dots: whether delta is computed here, from forward's output and ``grad``, and written for others.
        terms: fp32 tensors of grad_q's shape that are added to it.
    """

    name: str
    forward: GatheredAttention
    grad: str
    delta: str | None
    grad_q: str | None
    grad_weights: str | None
    grad_dtype: str
    out_dtype: str
    dots: bool = False
    terms: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class GatheredGradKV:
    """Gradients ``[B,TK,HKV,D]``, ``[B,TK,HKV,DV]`` of keys and values that gathered attention chose.

    Key-outer, through the inverse of the lists (a counting sort; nothing of size T x T/C). Chunks that nobody chose get
    zeros; no two programs add to one place.
    """

    name: str
    forward: GatheredAttention
    grad: str
    delta: str | None
    grad_k: str | None
    grad_v: str | None
    grad_dtype: str
    out_dtype: str


@dataclass(frozen=True, slots=True)
class SummariseGrad:
    """The gradient ``[B,TK,heads,dim]`` of tokens from that of means or maxima of their windows, ``[B,N,heads,dim]``.

    grad_x of token t = sum over the windows that hold t of grad / their tokens below TK, or where t holds the maximum.
    """

    name: str
    forward: Summarise
    grad: str
    grad_x: str
    grad_dtype: str
    out_dtype: str


@dataclass(frozen=True, slots=True)
class SelectorGradQ:
    """From the gradient of the chosen units' weights to that of their scores, and on to the queries.

    scores_grad ``[B,TQ,HS,K]`` fp32, 0 where the index is -1: for scores s, weights w, softmax and softmax_sink: w *
    (dw - sum w dw); sigmoid: dw * w * (1 - w); raw: dw; stick: ds_i = w_i dw_i sigmoid(-s_i) - sigmoid(s_i) * sum of
    w_j dw_j over j > i. grad_q ``[B,TQ,H,DR]`` = scale * sum of scores_grad * keys[index], by a ``mean`` its share;
    None where it is not asked for. grad_weights is fp32 ``[B,TQ,HS,K]``.
    """

    name: str
    forward: Selector
    grad_weights: str
    scores_grad: str
    grad_q: str | None
    out_dtype: str


@dataclass(frozen=True, slots=True)
class SelectorGradKeys:
    """grad_keys ``[B,N,HKV,DR]``: scale * sum over the queries and heads that chose a unit of scores_grad * q.

    Key-outer through the inverse of the lists, as ``GatheredGradKV``; units that nobody chose get zeros.
    """

    name: str
    forward: Selector
    scores_grad: str
    grad_keys: str
    out_dtype: str


@dataclass(frozen=True, slots=True)
class CombineGrad:
    """Gradients of a merge's branches ``[B,TQ,H,DV]`` and gates ``[B,TQ,H]``, row by row.

    ``gated``: d branch = f(g) * grad, d gate = f'(g) * rowdot(branch, grad); ``sum``: grad itself; ``convex``: g * grad
    and (1 - g) * grad, d gate = f'(g) * rowdot(o_0 - o_1, grad); ``lse``: with w = exp(lse_i - lse), d branch = w *
    grad and d lse_i = w * (rowdot(branch - out, grad) + lse_grad).

    Attributes:
        out, lse: the merged output and its log-sum-exp, read for ``lse``; else None.
        branch_grads, gate_grads, lse_grads: as many as forward's branches, gates and lses; None where not asked for.
        deltas: fp32 ``[B,TQ,H]``, the rowdots of branches and their gradients as these are stored; None for none.
    """

    name: str
    forward: Combine
    grad: str
    lse_grad: str | None
    branch_grads: tuple[str | None, ...]
    gate_grads: tuple[str | None, ...]
    lse_grads: tuple[str | None, ...]
    grad_dtype: str
    branch_grad_dtype: str
    out: str | None = None
    lse: str | None = None
    deltas: tuple[str | None, ...] = ()


@dataclass(frozen=True, slots=True)
class Total:
    """out = the sum of terms of one shape ``[B,T,heads,dim]`` (``[M,heads,dim]`` where not batched), rounded once.

    Attributes:
        length: the launch parameter with T, or M.
        term_dtypes: the dtype of each term.
    """

    name: str
    terms: tuple[str, ...]
    out: str
    heads: int
    dim: int
    length: str
    term_dtypes: tuple[str, ...]
    out_dtype: str
    batched: bool = True


GradSpec = (
    RowDot
    | TiledGradQ
    | TiledGradKV
    | TiledGradCapture
    | GatheredGradQ
    | GatheredGradKV
    | SummariseGrad
    | PrefixGrad
    | SelectorGradQ
    | SelectorGradKeys
    | PooledGrad
    | ChunkSinkGrad
    | GatheredGradCapture
    | IndexGrad
    | CombineGrad
    | MapGrad
    | ScanGrad
    | LadderGrad
    | StatesSum
    | AnyMixtureGrad
    | RouterGrad
    | Total
)
AnySpec = (
    Spec
    | Map
    | Prefix
    | Scan
    | Ladder
    | AnyMixture
    | RowLse
    | Router
    | Balance
    | SetSelector
    | Members
    | Evict
    | ListSum
    | Divergence
    | GradSpec
)
