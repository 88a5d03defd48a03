"""What a chain of scores goes back to: its query heads, its keys' heads, the tokens and the unit behind its columns."""

from __future__ import annotations

from sparsec.ir.node import Node
from sparsec.ir.op import Op
from sparsec.scalar.expr import Expr, constant


def score_behind(scores: Node) -> Node:
    """The ``score`` node that a chain of bias and reduce starts from."""
    while scores.op is not Op.SCORE:
        scores = scores.src[0]
    return scores


def key_heads(scores: Node) -> Expr:
    """Heads of the keys that were scored."""
    keys = score_behind(scores).src[1]
    return keys.shape[-3] if keys.kind == "memory" else keys.shape[-2]


def read_heads(q: Node, bank: Node) -> Expr:
    """Heads of what queries read of states: theirs, or the states' where several states share a key.

    State head h then has the key and the query of head h // (states / keys). States of several steps share none.
    """
    if bank.op is Op.WRITE and bank.integer("steps") > 1:
        return q.shape[2]
    keys = bank.src[1].shape[2] if bank.op is Op.WRITE else bank.shape[2]
    return q.shape[2] if keys is bank.shape[2] else bank.shape[2]


def unit_size(scores: Node) -> int | None:
    """Tokens from one column of the scores to the next; None where the keys are a plain tensor."""
    if scores.op is Op.SCORE:
        keys = scores.src[1]
        return stride(keys) if keys.kind == "memory" else None
    if scores.op is Op.REDUCE and scores["over"] == "overlap":
        return scores.integer("block")
    inner = unit_size(scores.src[0])
    if scores.op is Op.REDUCE and scores["over"] == "blocks":
        return inner and inner * scores.integer("stride")
    return inner


def stride(memory: Node) -> int:
    """Tokens from one row of a memory to the next; windows of windows multiply."""
    return memory.integer("stride") * stride(memory.src[0]) if memory.op is Op.SUMMARY else 1


def tokens_behind(scores: Node) -> Expr | None:
    """The number of tokens that the columns stand for; None where the keys are a plain tensor."""
    keys = score_behind(scores).src[1]
    while keys.op is Op.SUMMARY:
        keys = keys.src[0]
    return keys.shape[1] if keys.kind == "memory" else None


def ceil_div(length: Expr, size: int) -> Expr:
    """Units of ``size`` that cover ``length``."""
    return length if size == 1 else (length + (size - 1)) // size


def units(scores: Node, size: int, per: int) -> Expr:
    """Columns left when units of ``size`` tokens, ``per`` columns of the scores each, are formed."""
    tokens = tokens_behind(scores)
    return ceil_div(scores.shape[-1], per) if tokens is None else ceil_div(tokens, size)


def clash(one: Expr, other: Expr) -> bool:
    """Whether two dims are surely different: two numbers, or two names. The rest is checked when dims bind."""
    return one is not other and one.head == other.head and one.head in ("const", "var")


def has_lse(node: Node) -> bool:
    """Whether an output comes with a log-sum-exp: a joint softmax, or a merge of such by log-sum-exp."""
    said = {Op.ATTEND: ("per", "joint"), Op.MERGE: ("fn", "lse")}.get(node.op)
    return said is not None and str(node[said[0]]) == said[1]


def is_list(selection: Node) -> bool:
    """Whether a selection is a list of units, not a predicate."""
    return selection.op is not Op.MASK


ONE = constant(1)
