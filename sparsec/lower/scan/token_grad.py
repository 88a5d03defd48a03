"""The adjoint of the token recurrence: back over the tokens with the state before each of them known.

A first program walks forward and keeps the state before every few tokens. The second goes back: it walks again from
the nearest state that was kept, holds the states of a handful of tokens, and carries G = dL/dM. With F = exp(decay) M
before the write, R what the erase term reads, y = aᵀR and p = beta k:

    G += scale q doᵀ,  dq = scale M do        (reads after the write; those before it have F for M)
    dv = Gᵀp,  dp = G v,  dy = Gᵀb,  db = G y,  da = R dy
    dF = G (+ a dyᵀ where R = F),  d decay = Σ dF · F,  G <- exp(decay) dF (+ a dyᵀ where R = M)

Nothing is divided by a decay, so decays of 0 and of −inf are safe. Sums over columns that several programs share are
added up by a last program.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sparsec.lower.inverse.index import as_scratch
from sparsec.lower.lowered import Lowered, Scratch, Step
from sparsec.lower.scalars import add, ceil_div, mul, sub
from sparsec.lower.scan import token_sum
from sparsec.lower.scan.cell import (
    Cell,
    Token,
    cell,
    grid,
    parameters,
    place_of,
    states_shape,
    token,
    vector,
)
from sparsec.lower.scan.token import query, readers
from sparsec.lower.scan.token_sum import Target
from sparsec.plan.scan_specs import Operand, ScanGrad
from sparsec.scalar.expr import var
from sparsec.scalar.fn import Fn
from sparsec.tile import build as tile
from sparsec.tile.language import Node, Program, Tensor
from sparsec.tile.schedule import Schedule, ScheduleError

KEPT = "SC"
"""The launch parameter with the number of states that are kept."""


def lower(spec: ScanGrad, schedule: Schedule) -> Lowered:
    """The gradients of everything that a scan reads, from those of its outputs and final states."""
    if schedule.block % schedule.rows:
        raise ScheduleError(
            f"block {schedule.block} is not a multiple of rows {schedule.rows}, the tokens held at once"
        )
    writes = spec.forward.writes
    steps = [Step(_states(spec, schedule), schedule), Step(_back(spec, schedule), schedule)]
    scratch: list[Scratch] = [as_scratch(_kept(spec))]
    for target in token_sum.targets(spec):
        if token_sum.count(spec, target, schedule) > 1:
            steps.append(Step(token_sum.program(spec, target, schedule), schedule))
            scratch.append(as_scratch(token_sum.shares(spec, target, schedule)))
    return Lowered(
        tuple(steps), tuple(scratch), ((KEPT, (var(writes.length) + (schedule.block - 1)) // schedule.block),)
    )


def _kept(spec: ScanGrad) -> Tensor:
    w = spec.forward.writes
    return Tensor(f"{spec.name}_states", "float32", ("B", KEPT, w.heads, w.rows, w.cols))


def _states(spec: ScanGrad, schedule: Schedule) -> Program:
    """Keeps the state before every ``block`` tokens."""
    with tile.Builder() as builder:
        writes = spec.forward.writes
        own, kept, length = cell(builder, writes, schedule), _kept(spec), tile.param(writes.length)

        def visit(number: Node, old: Node) -> Sequence[Node]:
            own.keep(kept, own.batch, number, own.head, value=old)
            start = mul(number, schedule.block)
            return _walk(own, start, tile.apply(Fn.MINIMUM, add(start, schedule.block), length), old)

        tile.loop(0, tile.param(KEPT), 1, [own.first()], visit)
        tensors = list(own.tensors.values())
        return builder.program(f"{spec.name}_walk", tensors, parameters(writes, KEPT), grid(writes, schedule))


def _walk(own: Cell, start: Node, end: Node, state: Node) -> list[Node]:
    return tile.loop(start, end, 1, [state], lambda at, old: [token(own, at).after(old)])


def _back(spec: ScanGrad, schedule: Schedule) -> Program:
    with tile.Builder() as builder:
        writes, few = spec.forward.writes, schedule.rows
        own = cell(builder, writes, schedule)
        sink = Sink(spec, own, schedule)
        groups = ceil_div(tile.param(writes.length), few)

        def visit(number: Node, grad: Node) -> Sequence[Node]:
            start = mul(sub(sub(groups, number), 1), few)
            from_ = tile.apply(Fn.TRUNCDIV, start, schedule.block)
            (state,) = _walk(own, mul(from_, schedule.block), start, own.state(_kept(spec), own.batch, from_, own.head))
            held: list[tuple[Token, Node]] = []
            for n in range(few):
                now = token(own, add(start, n), few > 1)
                held.append((now, state))
                state = now.after(state)
            for now, before in reversed(held):
                grad = _token(spec, sink, now, before, grad)
            return [grad]

        (first,) = tile.loop(0, groups, 1, [_last(spec, own)], visit)
        if spec.grad_initial is not None:
            made = Tensor(spec.grad_initial, "float32", states_shape(writes))
            own.keep(made, own.batch, 0, own.head, value=first)
        tensors = list(own.tensors.values())
        return builder.program(spec.name, tensors, parameters(writes, KEPT), grid(writes, schedule))


def _last(spec: ScanGrad, own: Cell) -> Node:
    """The gradient of the final states."""
    if spec.grad_final is None:
        return own.zero()
    tensor = Tensor(spec.grad_final, "float32", states_shape(spec.forward.writes))
    return own.state(tensor, own.batch, 0, own.head)


@dataclass(frozen=True, slots=True)
class Sink:
    """Where gradients go: to the caller, or to shares of programs that each hold some of the columns."""

    spec: ScanGrad
    own: Cell
    schedule: Schedule

    def put(self, target: Target | None, now: Token, head: Node, value: Node) -> None:
        """A sum over columns, a scalar or [d]; ``head`` is the state's, or that of what is read."""
        if target is None:
            return
        own, heads = self.own, target.heads
        at = tile.apply(Fn.TRUNCDIV, head, target.sharers)
        made, index, limits = place_of(own, target.operand, heads, target.rows, False, now.bounded)
        if token_sum.count(self.spec, target, self.schedule) == 1:
            value = tile.cast(value, made.dtype)
            tile.store(own.tensor(made), own.batch, now.at, at, *index, value=value, bounds=limits)
            return
        shares = own.tensor(token_sum.shares(self.spec, target, self.schedule))
        limits = {dim + 1: limit for dim, limit in limits.items()}
        number = add(mul(tile.program_id(0), target.sharers), tile.apply(Fn.TRUNCMOD, head, target.sharers))
        tile.store(shares, number, own.batch, now.at, at, *index, value=value, bounds=limits)

    def values(self, target: Operand | None, now: Token, value: Node) -> None:
        """What has columns [e], of the state's own head."""
        if target is not None:
            own = self.own
            tensor, index, limits = place_of(own, target, own.writes.heads, False, True, now.bounded)
            value = tile.cast(value, target.dtype)
            tile.store(own.tensor(tensor), own.batch, now.at, own.head, *index, value=value, bounds=limits)


def _token(spec: ScanGrad, sink: Sink, now: Token, old: Node, grad: Node) -> Node:
    """One token back: the gradient of the state before it, from that of the state after it."""
    w, faded = spec.forward.writes, now.faded(old)
    answer = now.answer(old, faded)
    new = now.written(faded, answer)
    for number in _when(spec, "after"):
        grad = _read(spec, sink, now, number, new, grad)
    erased = _write(spec, sink, now, old if w.reads == "undecayed" else faded, answer, grad)
    undecayed = w.reads == "undecayed" and erased is not None
    grad_faded = grad if undecayed or erased is None else add(grad, erased)
    for number in _when(spec, "before"):
        grad_faded = _read(spec, sink, now, number, faded, grad_faded)
    _decay(spec, sink, now, faded, grad_faded)
    before = now.faded(grad_faded)
    return add(before, erased) if undecayed and erased is not None else before


def _write(spec: ScanGrad, sink: Sink, now: Token, read: Node, answer: Node | None, grad: Node) -> Node | None:
    """The gradients of what a token writes and erases; what they leave to the state that was read, a dyᵀ, if any."""
    own, found = sink.own, token_sum.found(spec)
    replaced = spec.forward.writes.erase is None
    grad_a = erased = None
    if answer is not None and now.erase is not None:
        a, b = now.erase
        grad_answer = across(own, grad, b)
        grad_a, erased = along(own, read, grad_answer), mul(a, grad_answer)
    grad_p = along(own, grad, now.v if answer is None or not replaced else add(now.v, answer))
    grad_k = grad_p if now.beta is None else mul(now.beta, grad_p)
    if grad_a is not None and replaced:
        grad_k = sub(grad_k, grad_a)
    sink.put(found.k, now, own.head, grad_k)
    sink.values(spec.grad_v, now, across(own, grad, now.p))
    if found.beta is not None:
        sink.put(found.beta, now, own.head, tile.reduce("sum", mul(now.k, grad_p), own.rows))
    if grad_a is not None and answer is not None and not replaced:
        sink.put(found.erase_a, now, own.head, grad_a)
        sink.put(found.erase_b, now, own.head, along(own, grad, answer))
    return erased


def _decay(spec: ScanGrad, sink: Sink, now: Token, faded: Node, grad_faded: Node) -> None:
    """The gradient of a log-decay: Σ dF · F."""
    own, target = sink.own, token_sum.found(spec).decay
    if target is not None:
        slope = along(own, grad_faded, faded)
        sink.put(target, now, own.head, slope if target.rows else tile.reduce("sum", slope, own.rows))


def _when(spec: ScanGrad, when: str) -> list[int]:
    return [n for n, read in enumerate(spec.forward.reads) if read.when == when]


def _read(spec: ScanGrad, sink: Sink, now: Token, number: int, state: Node, grad: Node) -> Node:
    """The gradients of what one read's heads ask, and the state's with their share."""
    own, read = sink.own, spec.forward.reads[number]
    for head in readers(own, read):
        out = vector(own, spec.grads[number], read.heads, now.at, head, False, True, now.bounded)
        out = mul(read.scale, out)
        sink.put(token_sum.found(spec).q[number], now, head, along(own, state, out))
        grad = add(grad, mul(query(now, read, head), out))
    return grad


def along(own: Cell, state: Node, value: Node) -> Node:
    """Σ_e state · value -> [d]."""
    return tile.reduce("sum", mul(state, value), own.cols)


def across(own: Cell, state: Node, key: Node) -> Node:
    """Σ_d state · key -> [e]."""
    return tile.reduce("sum", mul(state, key), own.rows)
