"""Adjoints of written states: autograd of Σ <grad_i, reader_i(write(…))> over everything that reads the states."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sparsec.ir.adjoint import Key, targets
from sparsec.ir.node import Node
from sparsec.oracle.states import Written
from sparsec.oracle.values import Bank, HandedBack, Value, plain

if TYPE_CHECKING:
    from sparsec.oracle.evaluate import Evaluation


def handed_back(ev: Evaluation, node: Node) -> HandedBack:
    """A reader with the gradient of its result; nothing is computed."""
    reader = node.src[0]
    return HandedBack(reader, targets(reader)[node.word("of"), None].place, ev.tensor(node.src[1]).double())


def write_gradients(ev: Evaluation, node: Node) -> dict[Key, Tensor]:
    """The gradients of everything that a write reads, under all its cotangents."""
    primal, again = node.src[0], torch.is_grad_enabled()
    cotangents = [ev.whole(source) for source in node.src[1:]]
    with torch.enable_grad():
        values = {source: _leaf(ev.whole(source)) for source in primal.src}
        wanted = {key: _tensor(values[primal.src[target.place]]) for key, target in targets(primal).items()}
        bank = _inner(ev, values).whole(replace(primal))
        assert isinstance(bank, Written)
        pairs = [_read(ev, primal, bank, cotangent) for cotangent in cotangents]
        live = [(x, grad) for x, grad in pairs if x.requires_grad]
        zeros = [torch.zeros_like(x) for x in wanted.values()]
        if not live:
            return dict(zip(wanted, zeros, strict=True))
        outputs, grads = zip(*live, strict=True)
        found = torch.autograd.grad(outputs, list(wanted.values()), grads, create_graph=again, allow_unused=True)
    return {key: zero if x is None else x for key, x, zero in zip(wanted, found, zeros, strict=True)}


def _read(ev: Evaluation, primal: Node, bank: Written, cotangent: Value) -> tuple[Tensor, Tensor]:
    """What a reader makes of the states, with the gradient of it; the last states where a tensor is given."""
    if not isinstance(cotangent, HandedBack):
        return bank.last, plain(cotangent).double()
    own = replace(primal)
    reader = cotangent.reader
    sources = tuple(own if n == cotangent.place else source for n, source in enumerate(reader.src))
    held = {source: ev.whole(source) for n, source in enumerate(reader.src) if n != cotangent.place}
    return _inner(ev, {**held, own: bank}).tensor(replace(reader, src=sources)), cotangent.grad


def _inner(ev: Evaluation, known: dict[Node, Value]) -> Evaluation:
    return type(ev)(known, ev.dims, ev.form_name, ev.q_offset, ev.device, ev.queries, ev.storage)


def _leaf(value: Value) -> Value:
    """The same value with a tensor of its own to differentiate by; a list has no slope."""
    if isinstance(value, Bank):
        return Bank(_own(value.m))
    return _own(value) if isinstance(value, Tensor) else value


def _own(x: Tensor) -> Tensor:
    return x.view_as(x) if x.requires_grad else x.detach().requires_grad_()


def _tensor(value: Value) -> Tensor:
    return value.m if isinstance(value, Bank) else plain(value)
