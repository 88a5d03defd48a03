"""The slow form: every row operation as a loop over batch entries, queries and heads.

Tensors are ``[B,R,H,…]`` for R query rows; keys and values ``[B,N,HKV,…]``; lists ``[B,R,HS,K]``. Head h reads
key/value head ``h // (H / HKV)`` and list ``h // (H / HS)``.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import torch
from torch import Tensor

from sparsec.oracle import attention, selection, weights
from sparsec.oracle import divergence as aux
from sparsec.oracle.selection import Choice, Reduction


def _each(like: Tensor, heads: int, one: Callable[[int, int, int], Tensor]) -> Tensor:
    """Stacks one(b, r, h) over the batch and rows of a tensor and a number of heads."""
    batch, rows = like.shape[:2]
    found = torch.stack([one(b, r, h) for b, r, h in product(range(batch), range(rows), range(heads))])
    return found.reshape(batch, rows, heads, *found.shape[1:])


def _shared(h: int, heads: int, sharers: int) -> int:
    """The index of what head h shares with its neighbours."""
    return h // (heads // sharers)


def dot(q: Tensor, keys: Tensor) -> Tensor:
    """q ``[B,R,H,D]``, keys ``[B,N,HKV,D]`` -> ``[B,R,H,N]``."""
    heads, shared = q.shape[2], keys.shape[2]
    return _each(q, heads, lambda b, r, h: attention.dot_query(q[b, r, h], keys[b, :, _shared(h, heads, shared)]))


def cosine(q: Tensor, keys: Tensor) -> Tensor:
    """q ``[B,R,H,D]``, keys ``[B,N,HKV,D]`` -> ``[B,R,H,N]``."""
    heads, shared = q.shape[2], keys.shape[2]
    return _each(q, heads, lambda b, r, h: selection.cosine_query(q[b, r, h], keys[b, :, _shared(h, heads, shared)]))


def indexer(q: Tensor, keys: Tensor, head_weights: Tensor) -> Tensor:
    """q ``[B,R,HI,D]``, keys ``[B,N,1,D]``, head_weights ``[B,R,HI]`` -> ``[B,R,1,N]``."""
    return _each(q, 1, lambda b, r, _: selection.indexer_query(q[b, r], keys[b, :, 0], head_weights[b, r]))


def attend(score: Tensor, v: Tensor, visible: Tensor, sink: Tensor | None) -> tuple[Tensor, Tensor]:
    """score and visible ``[B,R,H,N]``, v ``[B,N,HKV,DV]``, sink ``[H]`` -> o ``[B,R,H,DV]``, lse ``[B,R,H]``."""
    heads, shared = score.shape[2], v.shape[2]

    def one(b: int, r: int, h: int) -> Tensor:
        values = v[b, :, _shared(h, heads, shared)]
        o, lse = attention.attend_query(score[b, r, h], values, visible[b, r, h], None if sink is None else sink[h])
        return torch.cat([o, lse[None]])

    both = _each(score, heads, one)
    return both[..., :-1], both[..., -1]


def attend_chunks(
    score: Tensor, v: Tensor, visible: Tensor, chunks: Tensor, chunk_weights: Tensor, size: int, sink: Tensor | None
) -> Tensor:
    """As `attend` with lists ``[B,R,HS,K]`` and their weights -> o ``[B,R,H,DV]``."""
    heads, shared, lists = score.shape[2], v.shape[2], chunks.shape[2]

    def one(b: int, r: int, h: int) -> Tensor:
        values, s = v[b, :, _shared(h, heads, shared)], _shared(h, heads, lists)
        given = chunks[b, r, s], chunk_weights[b, r, s]
        own_sink = None if sink is None else sink[h]
        return attention.attend_chunks_query(score[b, r, h], values, visible[b, r, h], *given, size, own_sink)

    return _each(score, heads, one)


def members(chunks: Tensor, size: int, keys: int, heads: int) -> Tensor:
    """Lists ``[B,R,HS,K]`` -> which keys each head may see, bool ``[B,R,H,keys]``."""
    lists, rule = chunks.shape[2], (size, keys)
    return _each(chunks, heads, lambda b, r, h: attention.members_query(chunks[b, r, _shared(h, heads, lists)], *rule))


def of_members(value: Tensor, chunks: Tensor, size: int, keys: int, heads: int) -> Tensor:
    """Numbers ``[B,R,HS,K]`` of listed chunks -> of the keys in them for each head, 0 elsewhere ``[B,R,H,keys]``."""
    lists = chunks.shape[2]

    def one(b: int, r: int, h: int) -> Tensor:
        place = b, r, _shared(h, heads, lists)
        return attention.of_members_query(value[place], chunks[place], size, keys)

    return _each(chunks, heads, one)


def divergence(target: Tensor, score: Tensor, present: Tensor) -> Tensor:
    """Masses and scores ``[B,R,HS,N]`` of what is present -> KL of the one to the softmax of the other ``[B,R,HS]``."""
    rows = (target, score, present)
    return _each(score, score.shape[2], lambda b, r, s: aux.divergence_query(*(x[b, r, s] for x in rows)))


def softmax(score: Tensor, visible: Tensor) -> Tensor:
    """Probabilities over the visible -> ``[B,R,H,N]``."""
    return _each(score, score.shape[2], lambda b, r, h: selection.softmax_query(score[b, r, h], visible[b, r, h]))


def reduce_heads(score: Tensor, sharers: int, op: Reduction) -> Tensor:
    """``[B,R,H,N]`` -> ``[B,R,sharers,N]``: each keeps the reduction over its H / sharers heads."""
    size = score.shape[2] // sharers
    return _each(score, sharers, lambda b, r, s: selection.reduce_heads(score[b, r, s * size : (s + 1) * size], op))


def overlap(score: Tensor, blocks: int, size: int, stride: int, block: int, literal: bool) -> Tensor:
    """Summary scores ``[B,R,H,NS]`` -> block scores ``[B,R,H,blocks]``."""
    rule = size, stride, block, literal
    return _each(score, score.shape[2], lambda b, r, h: selection.overlap_query(score[b, r, h], blocks, *rule))


def pool(score: Tensor, blocks: int, kernel: int, stride: int, padding: int, op: Reduction) -> Tensor:
    """Scores ``[B,R,H,N]`` -> block scores ``[B,R,H,blocks]``."""
    rule = kernel, stride, padding, op
    return _each(score, score.shape[2], lambda b, r, h: selection.pool_query(score[b, r, h], blocks, *rule))


def choose(score: Tensor, eligible: Tensor, forced: Tensor, choice: Choice) -> Tensor:
    """Scores and bools ``[B,R,HS,N]`` -> ids int64 ``[B,R,HS,slots]``."""

    def one(b: int, r: int, s: int) -> Tensor:
        return selection.choose_query(score[b, r, s], eligible[b, r, s], forced[b, r, s], choice)

    return _each(score, score.shape[2], one)


def weigh(score: Tensor, ids: Tensor, fn: weights.WeightFn) -> Tensor:
    """Scores ``[B,R,HS,N]`` and lists ``[B,R,HS,K]`` -> weights ``[B,R,HS,K]``."""
    return _each(score, score.shape[2], lambda b, r, s: weights.weigh_query(score[b, r, s], ids[b, r, s], fn))
