"""Specs of what trains a selector: attention on chosen columns, its distance to the scores, gradients of the scores.

A *column* is one key of a chosen unit (``columns`` per unit, the unit's size) or a whole chosen unit (``columns`` = 1);
column c of a list is key or unit ``ids[c // columns] * columns + c % columns``. Nothing here is larger than the lists.
"""

from __future__ import annotations

from dataclasses import dataclass

from sparsec.plan.specs import GatheredAttention, Selector


@dataclass(frozen=True, slots=True)
class ListSum:
    """What joint attention over lists says of each column, summed over the heads that share a list.

    ``kind = mass``: sum of p = exp(s - lse), at least 0; -1 for columns that nobody sees. ``kind = slope``: sum of ds =
    p * (dp - delta), the gradient of a factor of 1 on the column; 0 for columns that nobody sees.

    Attributes:
        out: fp32 ``[B,TQ,HS,slots * columns]``.
        grad: of the output, for slopes; else None. A slope is a small difference: its sum of p * dp is added up anew,
            not taken from the output as it was rounded.
        lse_grad: of the log-sum-exp, for slopes; None for zero.
    """

    name: str
    forward: GatheredAttention
    kind: str
    columns: int
    out: str
    grad: str | None = None
    lse_grad: str | None = None
    grad_dtype: str = "float32"


@dataclass(frozen=True, slots=True)
class Divergence:
    """loss ``[B,TQ,HS]`` fp32 = coefficient * sum of p * (ln p - ln softmax(score)) over the columns of a list, or all.

    p is the mass over its sum; columns of mass -1 do not exist, and without any mass the loss is 0.

    Attributes:
        index: how columns are scored; its choice, softmax and pool have no part in it.
        scores: those that the choice ranked, kept by it ``[B,TQ,HS,slots]``; None where columns are scored again.
        mass: None for all keys that ``dense`` sees: nothing of size T x T exists, masses are computed where needed.
        dense: the attention of all keys, whose lists have no part in it.
        total: the sum of the masses, ``[B,TQ,HS]`` fp32; ``lse``: the scores' log-sum-exp. Both for the gradient.
    """

    name: str
    index: Selector
    columns: int
    mass: str | None
    loss: str
    total: str
    lse: str
    coefficient: float
    dense: GatheredAttention | None = None
    scores: str | None = None


@dataclass(frozen=True, slots=True)
class IndexGradQ:
    """From the gradients of the scores of columns to those of the queries that scored them, and of their weights.

    Attributes:
        scores_grad: fp32 ``[B,TQ,HS,slots * columns]``, None for a dense loss. Written where there is a ``loss``, as
            grad * coefficient * (softmax(score) - p) and 0 for columns that do not exist; else read.
        loss, grad: the divergence and the gradient of its result ``[B,TQ,HS]`` fp32; None for given ``scores_grad``.
        grad_q: ``[B,TQ,H,D]``; ``grad_weights``: ``[B,TQ,H]`` of an indexer; None where not asked for.
    """

    name: str
    index: Selector
    columns: int
    scores_grad: str | None
    loss: Divergence | None
    grad: str | None
    grad_q: str | None
    grad_weights: str | None
    out_dtype: str


@dataclass(frozen=True, slots=True)
class IndexGradKeys:
    """grad_keys ``[B,N,HKV,D]`` from the gradients of the scores of columns: key-outer, by the inverse of the lists.

    Units that nobody chose get zeros; no two programs add to one place.
    """

    name: str
    index: Selector
    columns: int
    scores_grad: str
    grad_keys: str
    out_dtype: str


@dataclass(frozen=True, slots=True)
class DenseGradKeys:
    """grad_keys ``[B,N,HKV,D]`` of a dense loss: a program per tile of keys and share of the queries walks them.

    The shares' sums are kept apart and added up by a second program; no two programs add to one place.

    Attributes:
        grad: of the loss, ``[B,TQ,HS]`` fp32.
    """

    name: str
    index: Selector
    loss: Divergence
    grad: str
    grad_keys: str
    out_dtype: str


IndexGrad = IndexGradQ | IndexGradKeys | DenseGradKeys
