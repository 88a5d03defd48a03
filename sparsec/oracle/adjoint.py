"""The meaning of ``vjp``: torch's autograd of the primal op alone, its direct sources taken as they are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sparsec.ir.adjoint import Key, Part, key_of, targets
from sparsec.ir.node import Node
from sparsec.oracle.values import Memory, Output, Value, plain

if TYPE_CHECKING:
    from sparsec.oracle.evaluate import Evaluation


def vjp(ev: Evaluation, node: Node) -> Tensor:
    """The gradient of one source, over all rows at once; zeros where nothing flows.

    The primal is computed anew from its sources, even where its own value was given.
    """
    key = key_of(node)
    group = node.src, key[0] if node.src[0].kind == "memory" else ""
    if group not in ev.adjoints:
        ev.adjoints[group] = _gradients(ev, node)
    found = ev.adjoints[group][key]
    return found[0] if found.ndim > len(node.shape) else found  # learned slots have no batch


def _gradients(ev: Evaluation, node: Node) -> dict[Key, Tensor]:
    """The gradients of everything that a node's primal reads, under the node's cotangents."""
    primal = node.src[0]
    values, grads = [ev.whole(source) for source in primal.src], [ev.tensor(source) for source in node.src[1:]]
    again = torch.is_grad_enabled() and any(x.requires_grad for value in (*values, *grads) for x in _tensors(value))
    with torch.enable_grad():
        leaves = [_each(value, _leaf) for value in values]
        result = _computed(ev, primal, leaves)
        wanted = {key: _part(leaves[t.place], t.part) for key, t in targets(primal).items()}
        pairs = zip(_differentiated(result, node.word("of"), len(grads) > 1), grads, strict=True)
        live = [(x, grad.double()) for x, grad in pairs if x.requires_grad]
        if not live:
            return {key: torch.zeros_like(leaf) for key, leaf in wanted.items()}
        outputs, cotangents = zip(*live, strict=True)
        found = torch.autograd.grad(outputs, list(wanted.values()), cotangents, create_graph=again, allow_unused=True)
    pairs_of = zip(wanted.items(), found, strict=True)
    return {key: torch.zeros_like(leaf) if grad is None else grad for (key, leaf), grad in pairs_of}


def _computed(ev: Evaluation, primal: Node, leaves: list[Value]) -> Value:
    """The primal of new values. Its sources are copied nodes: what it reads twice has a gradient in each place."""
    copies = tuple(replace(source) for source in primal.src)
    inner = type(ev)(dict(zip(copies, leaves, strict=True)), ev.dims, ev.form_name, ev.q_offset, ev.device)
    return inner.whole(replace(primal, src=copies))


def _differentiated(result: Value, of: str, with_lse: bool) -> list[Tensor]:
    """The tensors of a result that the cotangents belong to."""
    if isinstance(result, Memory):
        return [_part(result, "v" if of == "v" else "k")]
    return [_part(result, "value"), _part(result, "lse")] if with_lse else [_part(result, "value")]


def _part(value: Value, part: Part) -> Tensor:
    if part in ("k", "v"):
        assert isinstance(value, Memory)
        found = value.k if part == "k" else value.v
    elif part == "lse":
        assert isinstance(value, Output)
        found = value.lse
    else:
        found = plain(value)
    assert found is not None, part
    return found


def _each(value: Value, act: Callable[[Tensor], Tensor]) -> Value:
    """A value with its tensors put through a function; lists and masks, which have no slope, as they are."""
    if isinstance(value, Tensor):
        return act(value)
    if isinstance(value, Memory):
        return Memory(act(value.k), None if value.v is None else act(value.v))
    if isinstance(value, Output):
        return Output(act(value.o), None if value.lse is None else act(value.lse))
    return value


def _tensors(value: Value) -> list[Tensor]:
    found: list[Tensor] = []

    def keep(x: Tensor) -> Tensor:
        found.append(x)
        return x

    _each(value, keep)
    return found


def _leaf(x: Tensor) -> Tensor:
    """The same tensor as something of its own to differentiate by."""
    if not x.is_floating_point():
        return x
    return x.view_as(x) if x.requires_grad else x.detach().requires_grad_()
