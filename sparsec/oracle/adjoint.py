"""The meaning of ``vjp``: torch's autograd of the primal op alone, its direct sources taken as they are."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sparsec.ir.adjoint import Key, Part, key_of, targets
from sparsec.ir.node import Node
from sparsec.ir.op import Op
from sparsec.oracle.state_adjoint import handed_back, write_gradients
from sparsec.oracle.values import Bank, Chosen, HandedBack, Memory, Output, Value, plain, take

if TYPE_CHECKING:
    from sparsec.oracle.evaluate import Evaluation


def vjp(ev: Evaluation, node: Node) -> Tensor | HandedBack:
    """The gradient of one source, over all rows at once; zeros where nothing flows.

    The primal is computed anew from its sources, even where its own value was given.
    """
    if node.kind == "cotangent":
        return handed_back(ev, node)
    if node.src[0].op is Op.TOPK:
        return _to_columns(ev, node)
    key = key_of(node)
    group = node.src, key[0] if node.src[0].kind == "memory" else ""
    if group not in ev.adjoints:
        ev.adjoints[group] = (write_gradients if node.src[0].op is Op.WRITE else _gradients)(ev, node)
    found = ev.adjoints[group][key]
    return found[0] if found.ndim > len(node.shape) else found  # learned slots have no batch


def _to_columns(ev: Evaluation, node: Node) -> Tensor:
    """A straight-through choice hands what each slot is worth to the score that was chosen."""
    chosen, grad = ev.whole(node.src[0]), ev.tensor(node.src[1]).double()
    assert isinstance(chosen, Chosen)
    count = ev.dim(node.shape[-1])
    table = grad.new_zeros(*grad.shape[:-1], count + 1)
    return table.scatter_add(-1, torch.where(chosen.ids < 0, count, chosen.ids), grad)[..., :count]


def _gradients(ev: Evaluation, node: Node) -> dict[Key, Tensor]:
    """The gradients of everything that a node's primal reads, under the node's cotangents.

    The primal is recorded block by block of rows, so that no more than a block is ever held.
    """
    primal, grads = node.src[0], [ev.tensor(source).double() for source in node.src[1:]]
    # A mask is evaluated where it is read: as a value it would have a number for every pair of all rows.
    values = {n: ev.whole(source) for n, source in enumerate(primal.src) if source.op is not Op.MASK}
    read = (*values.values(), *grads)
    again = torch.is_grad_enabled() and any(x.requires_grad for value in read for x in _tensors(value))
    with torch.enable_grad():
        leaves = {n: _each(value, _leaf) for n, value in values.items()}
        for target in targets(primal).values():
            leaves[target.place] = _passing(leaves[target.place])
        places = {key: t for key, t in targets(primal).items() if primal.src[t.place].kind != "state"}
        wanted = {key: _part(leaves[t.place], t.part) for key, t in places.items()}
        totals = {key: torch.zeros_like(leaf) for key, leaf in wanted.items()}
        for result, rows in _computed(ev, primal, leaves, None if again else _reached(grads)):
            here = grads if rows is None else [plain(take(grad, rows)) for grad in grads]
            pairs = zip(_differentiated(result, node.word("of"), len(grads) > 1), here, strict=True)
            live = [(x, grad) for x, grad in pairs if x.requires_grad]
            for key, grad in zip(wanted, _slopes(live, list(wanted.values()), again), strict=False):
                totals[key] = totals[key] if grad is None else totals[key] + grad
    return totals


def _slopes(pairs: list[tuple[Tensor, Tensor]], leaves: list[Tensor], again: bool) -> Sequence[Tensor | None]:
    """The gradient of each leaf, None where nothing depends on it; ``again``: itself differentiable."""
    if not pairs:
        return []
    outputs, cotangents = zip(*pairs, strict=True)
    return torch.autograd.grad(outputs, leaves, cotangents, create_graph=again, allow_unused=True)


def _reached(grads: Sequence[Tensor]) -> Tensor | None:
    """The query rows on which some cotangent is not zero: the others add nothing. None where rows are no dimension."""
    if any(grad.ndim < 3 for grad in grads):
        return None
    found: Tensor = torch.stack([(grad != 0).transpose(0, 1).flatten(1).any(1) for grad in grads]).any(0).nonzero()
    return found[:, 0] if found.numel() else None


def _computed(
    ev: Evaluation, primal: Node, leaves: Mapping[int, Value], rows: Tensor | None
) -> Iterator[tuple[Value, Tensor | None]]:
    """The primal of new values. Its sources are copied nodes: what it reads twice has a gradient in each place."""
    copies = tuple(replace(source) if n in leaves else source for n, source in enumerate(primal.src))
    known = {**{copies[n]: leaf for n, leaf in leaves.items()}, **_behind(ev, primal)}
    inner = type(ev)(known, ev.dims, ev.form_name, ev.q_offset, ev.device, ev.queries, ev.storage)
    return inner.pieces(replace(primal, src=copies), rows)


def _behind(ev: Evaluation, primal: Node) -> dict[Node, Value]:
    """What is read beside the values of sources: by masks, and by a training signal of its target's own sources."""
    target = primal.operands.get("target") if primal.op is Op.AUX else None
    sources = [*(target.src if target is not None else ()), *(x for x in primal.src if x.op is Op.MASK)]
    nodes = [x for source in sources for x in (source.src if source.op is Op.MASK else (source,))]
    return {node: ev.whole(node) for node in nodes}


def _differentiated(result: Value, of: str, with_lse: bool) -> list[Tensor]:
    """The tensors of a result that the cotangents belong to."""
    if isinstance(result, Memory):
        return [_part(result, "v" if of == "v" else "k")]
    if isinstance(result, Bank):
        return [result.m]
    return [_part(result, "value"), _part(result, "lse")] if with_lse else [_part(result, "value")]


def _passing(value: Value) -> Value:
    """A list with factors of 1 to differentiate by; anything else as it is."""
    if not isinstance(value, Chosen):
        return value
    ones = torch.ones(value.ids.shape, dtype=torch.float64, device=value.ids.device)
    return replace(value, passed=ones.requires_grad_())


def _part(value: Value, part: Part) -> Tensor:
    if part in ("k", "v"):
        assert isinstance(value, Memory)
        found = value.k if part == "k" else value.v
    elif part == "lse":
        assert isinstance(value, Output)
        found = value.lse
    else:
        found = value.passed if isinstance(value, Chosen) else plain(value)
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
