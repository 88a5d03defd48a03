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
from functools import reduce

from sparsec.lower.inverse.index import as_scratch
from sparsec.lower.lowered import Lowered, Scratch, Step
from sparsec.lower.scalars import add, ceil_div, mul, sub
from sparsec.lower.scan.cell import Cell, cell, grid, parameters, states_shape, vector
from sparsec.lower.scan.runs import Runs
from sparsec.lower.scan.token import sums
from sparsec.lower.scan.token.forward import query, readers, turned
from sparsec.lower.scan.token.sums import Found, Target
from sparsec.lower.scan.token.visit import Place, Token, listed, placed, steps, token
from sparsec.plan.states.scan_specs import ScanGrad
from sparsec.scalar.expr import Expr, var
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
    runs = turned(spec.name, writes, schedule, schedule.block)
    steps = runs.steps(schedule) if runs is not None else []
    steps += [Step(_states(spec, schedule, runs), schedule), Step(_back(spec, schedule, runs), schedule)]
    scratch: list[Scratch] = [*(runs.scratch() if runs is not None else []), as_scratch(_kept(spec))]
    added, shares = sums.sums(spec.name, writes, sums.targets(spec), schedule)
    params = runs.params() if runs is not None else ()
    kept = (KEPT, runs.tiles() if runs is not None else _blocks(spec, schedule) * _walks(spec))
    return Lowered((*steps, *added), (*scratch, *shares), (*params, kept))


def _blocks(spec: ScanGrad, schedule: Schedule) -> Expr:
    """States that are kept of a walk over all tokens."""
    return (var(spec.forward.writes.length) + (schedule.block - 1)) // schedule.block


def _walks(spec: ScanGrad) -> int:
    """Walks of a head over all tokens."""
    w = spec.forward.writes
    return w.parts + 1 if w.route is not None else 1


def _kept(spec: ScanGrad) -> Tensor:
    w = spec.forward.writes
    return Tensor(f"{spec.name}_states", "float32", ("B", KEPT, w.heads, w.rows, w.cols))


def _first(own: Cell, schedule: Schedule) -> Node:
    """The number of the first state that a program keeps: runs begin at multiples of ``block``."""
    if own.runs is not None:
        return tile.apply(
            Fn.TRUNCDIV,
            tile.load(own.tensor(own.runs.spans), own.batch, listed(own), own.part, 0),
            schedule.block,
        )
    return mul(own.part, ceil_div(tile.param(own.writes.length), schedule.block))


def _states(spec: ScanGrad, schedule: Schedule, runs: Runs | None) -> Program:
    """Keeps the state before every ``block`` tokens."""
    with tile.Builder() as builder:
        writes = spec.forward.writes
        own, kept = cell(builder, writes, schedule, runs), _kept(spec)
        length, first = steps(own), _first(own, schedule)

        def visit(number: Node, old: Node) -> Sequence[Node]:
            own.keep(kept, own.batch, add(first, number), own.head, value=old)
            start = mul(number, schedule.block)
            return _walk(own, start, tile.apply(Fn.MINIMUM, add(start, schedule.block), length), old)

        tile.loop(0, ceil_div(length, schedule.block), 1, [own.first()], visit)
        tensors = list(own.tensors.values())
        return builder.program(f"{spec.name}_walk", tensors, parameters(writes, runs, KEPT), grid(writes, schedule))


def _walk(own: Cell, start: Node, end: Node, state: Node) -> list[Node]:
    return tile.loop(start, end, 1, [state], lambda at, old: [token(own, at).after(old)])


def _back(spec: ScanGrad, schedule: Schedule, runs: Runs | None) -> Program:
    with tile.Builder() as builder:
        writes, few = spec.forward.writes, schedule.rows
        own = cell(builder, writes, schedule, runs)
        sink = Sink(spec, own, schedule, sums.found(spec))
        groups, first = ceil_div(steps(own), few), _first(own, schedule)

        def visit(number: Node, grad: Node) -> Sequence[Node]:
            start = mul(sub(sub(groups, number), 1), few)
            from_ = tile.apply(Fn.TRUNCDIV, start, schedule.block)
            kept = own.state(_kept(spec), own.batch, add(first, from_), own.head)
            (state,) = _walk(own, mul(from_, schedule.block), start, kept)
            held: list[tuple[Token, Node]] = []
            for n in range(few):
                now = token(own, add(start, n), few > 1)
                held.append((now, state))
                state = now.after(state)
            for now, before in reversed(held):
                grad = _token(spec, sink, now, before, grad)
            return [grad]

        (grad,) = tile.loop(0, groups, 1, [_last(spec, own)], visit)
        if spec.grad_initial is not None:
            made = Tensor(spec.grad_initial, "float32", states_shape(writes))
            own.keep(made, own.batch, own.part, own.head, value=grad, part=1)
        tensors = list(own.tensors.values())
        return builder.program(spec.name, tensors, parameters(writes, runs, KEPT), grid(writes, schedule))


def _last(spec: ScanGrad, own: Cell) -> Node:
    """The gradient of the final states."""
    if spec.grad_final is None:
        return own.zero()
    tensor = Tensor(spec.grad_final, "float32", states_shape(spec.forward.writes))
    return own.state(tensor, own.batch, own.part, own.head, part=1)


@dataclass(frozen=True, slots=True)
class Sink:
    """Where gradients go: to the caller, or to shares of programs that each hold some of the columns."""

    spec: ScanGrad
    own: Cell
    schedule: Schedule
    found: Found

    def put(self, target: Target | None, now: Token, head: Node, value: Node) -> None:
        """A gradient of a scalar, [d] or [e]; ``head`` is the state's, or that of what is read."""
        if target is not None:
            sums.put(now, target, head, value, self.schedule)


def _token(spec: ScanGrad, sink: Sink, now: Token, old: Node, grad: Node) -> Node:
    """One token back: the gradient of the state before it, from that of the state after it."""
    w, faded = spec.forward.writes, now.faded(old)
    answer = now.answer(old, faded)
    new = now.written(faded, answer)
    weights = list[Node]()
    for number in _when(spec, "after"):
        grad = _read(spec, sink, now, number, new, grad, weights)
    erased = _write(spec, sink, now, old if w.reads == "undecayed" else faded, answer, grad, weights)
    undecayed = w.reads == "undecayed" and erased is not None
    grad_faded = grad if undecayed or erased is None else add(grad, erased)
    for number in _when(spec, "before"):
        grad_faded = _read(spec, sink, now, number, faded, grad_faded, weights)
    if sink.found.weight is not None:
        sink.put(sink.found.weight, now, sink.own.head, reduce(add, weights))
    _decay(sink, now, faded, grad_faded)
    before = now.faded(grad_faded)
    return add(before, erased) if undecayed and erased is not None else before


def _write(
    spec: ScanGrad, sink: Sink, now: Token, read: Node, answer: Node | None, grad: Node, weights: list[Node]
) -> Node | None:
    """The gradients of what a token writes and erases; what they leave to the state that was read, a dyᵀ, if any.

    What goes to e is appended to ``weights``.
    """
    own, found, share = sink.own, sink.found, now.visit.share
    replaced = spec.forward.writes.erase is None
    grad_a = erased = None
    if answer is not None and now.erase is not None:
        a, b = now.erase
        grad_answer = _through(spec, now, across(own, grad, b))
        grad_a, erased = along(own, read, grad_answer), mul(a, grad_answer)
    grad_p = along(own, grad, now.v if answer is None or not replaced else add(now.v, answer))
    grad_k = grad_p if now.rate is None else mul(now.rate, grad_p)
    if grad_a is not None and replaced:
        grad_k = sub(grad_k, grad_a)
    sink.put(found.k, now, own.head, grad_k)
    sink.put(found.v, now, own.head, _through(spec, now, across(own, grad, now.p)))
    if found.beta is not None or found.weight is not None:
        rate = tile.reduce("sum", mul(now.k, grad_p), own.rows)
        sink.put(found.beta, now, own.head, rate if share is None else mul(share, rate))
        weights.append(rate if now.beta is None else mul(now.beta, rate))
    if grad_a is not None and answer is not None and not replaced:
        sink.put(found.erase_a, now, own.head, grad_a)
        grad_b = along(own, grad, answer)
        sink.put(found.erase_b, now, own.head, grad_b if share is None else mul(share, grad_b))
        if found.weight is not None and now.b is not None:
            weights.append(tile.reduce("sum", mul(now.b, grad_b), own.rows))
    return erased


def _through(spec: ScanGrad, now: Token, value: Node) -> Node:
    """The gradient [e] of what a delta rule writes, with that which is handed back to it."""
    if spec.surprise is None:
        return value
    own, live = now.cell, now.visit.live
    given = vector(own, spec.surprise, own.writes.heads, now.at, own.head, False, True, now.bounded)
    return add(value, given if live is None else mul(live, given))


def _decay(sink: Sink, now: Token, faded: Node, grad_faded: Node) -> None:
    """The gradient of a log-decay: Σ dF · F."""
    own, target = sink.own, sink.found.decay
    if target is not None:
        if target.last == "cols":
            sink.put(target, now, own.head, across(own, grad_faded, faded))
            return
        slope = along(own, grad_faded, faded)
        sink.put(target, now, own.head, slope if target.last else tile.reduce("sum", slope, own.rows))


def _when(spec: ScanGrad, when: str) -> list[int]:
    return [n for n, read in enumerate(spec.forward.reads) if read.when == when]


def _read(spec: ScanGrad, sink: Sink, now: Token, number: int, state: Node, grad: Node, weights: list[Node]) -> Node:
    """The gradients of what one read's heads ask, and the state's with their share."""
    own, read, met = sink.own, spec.forward.reads[number], now.visit
    gain = met.share if read.weighed else met.live
    at, bounded = now.at, now.bounded
    if read.slot is not None:
        here = placed(own, Place(at, met.slot, bounded), read.slot)
        at, bounded = here.at, here.limited
    for head in readers(own, read):
        given = vector(own, spec.grads[number], read.heads, at, head, read.turned, not read.turned, bounded)
        given = mul(read.scale, given)
        out = given if gain is None else mul(gain, given)
        slope = (across if read.turned else along)(own, state, out)
        sink.put(sink.found.q[number], now, head, slope)
        asked = query(now, read, head)
        if read.weighed and sink.found.weight is not None:
            weights.append(tile.reduce("sum", mul(asked, along(own, state, given)), own.rows))
        grad = add(grad, mul(asked, out))
    return grad


def along(own: Cell, state: Node, value: Node) -> Node:
    """Σ_e state · value -> [d]."""
    return tile.reduce("sum", mul(state, value), own.cols)


def across(own: Cell, state: Node, key: Node) -> Node:
    """Σ_d state · key -> [e]."""
    return tile.reduce("sum", mul(state, key), own.rows)
