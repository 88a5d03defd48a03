"""Attention of the rows in hand: what every query sees, the softmax over it, and how far scores are from it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sparsec.ir.node import Node
from sparsec.ir.op import Op
from sparsec.ir.scores import stride, unit_size
from sparsec.oracle.values import Chosen, Mask, Memory, OracleError, Output

if TYPE_CHECKING:
    from sparsec.oracle.evaluate import Evaluation


def modified(ev: Evaluation, node: Node, attr: str, value: Tensor) -> Tensor:
    """The attribute's expression of scores ``[B,R,H,N]``, or the scores where it is None."""
    expr = node.expr(attr)
    if expr is None:
        return value
    places = ev.places(value.shape[2], value.shape[3], value.shape[0])
    found = ev.expression(expr, {"score": value, **places, **ev.captured(node)})
    return found.to(value.dtype).expand(value.shape)


def attend(ev: Evaluation, node: Node) -> Output:
    """Softmax attention over what every selection admits: jointly, or per chunk with weights."""
    q, (k, v) = ev.rows(node.src[0]), read(ev, node)
    logit, sink = logits(ev, node, q, k), _sink(ev, node, q)
    visible, chosen = admitted(ev, node, k.shape[1])
    if node.word("per") == "joint":
        if chosen is not None and chosen.passed is not None:
            logit = logit + ev.form.of_members(chosen.passed.log(), chosen.ids, chosen.size, *logit.shape[:1:-1])
        return Output(*ev.form.attend(logit, v, visible, sink))
    assert chosen is not None
    given_weights = ev.rows(node.operands["weights"])
    return Output(ev.form.attend_chunks(logit, v, visible, chosen.ids, given_weights, chosen.size, sink), None)


def read(ev: Evaluation, node: Node) -> tuple[Tensor, Tensor]:
    """The keys and values of an attend, for every batch entry."""
    memory = ev.whole(node.src[1])
    assert isinstance(memory, Memory) and memory.v is not None
    return memory.k.expand(ev.batch, *memory.k.shape[1:]), memory.v.expand(ev.batch, *memory.v.shape[1:])


def logits(ev: Evaluation, node: Node, q: Tensor, k: Tensor) -> Tensor:
    """An attend's scores ``[B,R,H,N]``: scaled, capped, biased."""
    logit = ev.form.dot(q, k) * ev.number(node.expr("scale"))
    cap = node["softcap"]
    if isinstance(cap, float | int):
        logit = cap * torch.tanh(logit / cap)
    return modified(ev, node, "bias", logit)


def _sink(ev: Evaluation, node: Node, q: Tensor) -> Tensor | None:
    if node.word("sink") == "none":
        return None
    return q.new_zeros(q.shape[2]) if node.word("sink") == "zero" else ev.tensor(node.operands["sink"])


def admitted(ev: Evaluation, node: Node, keys: int) -> tuple[Tensor, Chosen | None]:
    """The keys that each query of an attend may see, bool ``[B,R,H,N]``, and its list if it has one."""
    heads, chosen = ev.dim(node.shape[2]), None
    visible = torch.ones(ev.batch, ev.positions.shape[0], heads, keys, dtype=torch.bool, device=ev.device)
    for source in node.positional[2:]:
        selection = ev.part(source)
        if isinstance(selection, Mask):
            visible = visible & selection.visible(heads)
            continue
        assert isinstance(selection, Chosen) and chosen is None
        chosen = in_rows(selection, node.src[1])
        _check_range(ev, source, chosen, keys)
        visible = visible & ev.form.members(chosen.ids, chosen.size, keys, heads)
    return visible, chosen


def in_rows(chosen: Chosen, memory: Node) -> Chosen:
    """A list whose units are counted in rows of a memory: chosen units of tokens hold several summaries each."""
    return chosen if memory.op is not Op.SUMMARY else replace(chosen, size=chosen.size // stride(memory))


def _check_range(ev: Evaluation, node: Node, chosen: Chosen, keys: int) -> None:
    limit = -(-keys // chosen.size)
    wrong = (chosen.ids < -1) | (chosen.ids >= limit)
    if bool(wrong.any()):
        value, name = int(chosen.ids[wrong][0]), ev.name(node.src[0])
        raise OracleError(
            f"{name}: index {value} is out of range: there are {limit} units; use 0 … {limit - 1}, or −1 for none"
        )


def lse(ev: Evaluation, node: Node) -> Tensor:
    """The log-sum-exp of an attend or of a merge by lse."""
    output = ev.part(node.src[0])
    assert isinstance(output, Output) and output.lse is not None
    return output.lse


def kl(ev: Evaluation, node: Node) -> Tensor:
    """coefficient · KL(the target's attention, summed over heads and detached ‖ softmax of the scores) ``[B,R,HS]``.

    Over what the target shows of the chosen, or of everything; a column is a key, or a chosen unit of keys.
    """
    score, mass, there = compared(ev, node)
    coefficient = node["coefficient"]
    assert isinstance(coefficient, float | int)
    return coefficient * ev.form.divergence(mass, score, there)


def compared(ev: Evaluation, node: Node) -> tuple[Tensor, Tensor, Tensor]:
    """The scores, the attention that their columns got, and which columns there are: all ``[B,R,HS,N]``."""
    score, target = ev.rows(node.src[0]), node.operands["target"]
    q, (k, v) = ev.rows(target.src[0]).detach(), (x.detach() for x in read(ev, target))
    logit, (visible, _) = logits(ev, target, q, k).detach(), admitted(ev, target, k.shape[1])
    size = 1
    if len(node.positional) > 1:
        chosen = ev.part(node.src[1])
        assert isinstance(chosen, Chosen)
        size = 1 if unit_size(node.src[0]) == 1 else chosen.size
        visible = visible & ev.form.members(chosen.ids, chosen.size, k.shape[1], logit.shape[2])
    visible = visible & (logit != -torch.inf)
    _, total = ev.form.attend(logit, v, visible, _sink(ev, target, q))
    share = torch.where(visible, torch.exp(logit - torch.where(total == -torch.inf, 0.0, total)[..., None]), 0.0)
    of_key = [ev.form.reduce_heads(x, score.shape[2], "sum").detach() for x in (share, visible.to(share.dtype))]
    mass, there = (ev.form.pool(x, score.shape[3], size, size, 0, "sum") for x in of_key)
    return score, mass, there > 0
