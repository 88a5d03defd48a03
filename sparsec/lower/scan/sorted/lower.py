"""The programs of a bank with a route in chunks, one after another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from sparsec.lower.inverse.index import as_scratch
from sparsec.lower.lowered import Lowered, Step
from sparsec.lower.scan.chunk import forward as chunk
from sparsec.lower.scan.chunk import gradient as chunk_grad
from sparsec.lower.scan.runs import ROOM, Runs
from sparsec.lower.scan.sorted import gather, scatter
from sparsec.lower.scan.sorted import spec as sort
from sparsec.lower.scan.sorted.spec import Moved
from sparsec.lower.scan.token import sums as token_sum
from sparsec.lower.scan.token.sums import Target
from sparsec.plan.states.scan_specs import Operand, Scan, ScanGrad, Writes
from sparsec.scalar.expr import Expr
from sparsec.scalar.walk import substitute
from sparsec.tile.language import Tensor
from sparsec.tile.schedule import Schedule, ScheduleError


def lower(spec: Scan, schedule: Schedule) -> Lowered:
    """A scan: tokens sorted, scanned in chunks, and what was read put back."""
    w, inner = spec.writes, sort.scan(spec)
    runs = _runs(spec.name, w, schedule)
    moved = sort.brought(spec.name, w)
    moved += [Moved(r.q, s.q, r.heads, w.rows) for r, s in zip(spec.reads, inner.reads, strict=True)]
    back = [sort.answers(spec.name, w, r, n) for n, r in enumerate(spec.reads)]
    back += sort.surprise(w, spec.surprise, inner.surprise)
    small = moving(schedule)
    steps = brought_in(runs, w, inner.writes, moved, schedule)
    put = [Step(scatter.lower(runs, w, m, small), small) for m in back]
    held = [m.tensors(w)[1] for m in (*moved, *back)] + strengths(inner.writes)
    return _together(runs, steps, chunk.lower(inner, schedule, runs), put, held)


def lower_grad(spec: ScanGrad, schedule: Schedule) -> Lowered:
    """Its adjoint: what the forward read and gradients of outputs sorted, and gradients put back."""
    w, inner = spec.forward.writes, sort.gradient(spec)
    runs = _runs(spec.name, w, schedule)
    moved = sort.brought(spec.name, w)
    by_outputs = sort.divides(w)
    for r, s in zip(spec.forward.reads, inner.forward.reads, strict=True):
        moved.append(Moved(r.q, s.q, r.heads, w.rows, r.weighed and sort.weighs(w) and not by_outputs))
    for r, x, y in zip(spec.forward.reads, spec.grads, inner.grads, strict=True):
        moved.append(Moved(x, y, r.heads, w.cols, r.weighed and by_outputs, r.slot))
    moved += sort.surprise(w, spec.surprise, inner.surprise)
    unweighed = sort.unweighed(spec)
    moved += [Moved(spec.forward.reads[0].q, q, w.heads, w.rows) for q in unweighed]
    put, made = put_back(spec, inner, runs, schedule)
    held = [m.tensors(w)[1] for m in moved] + strengths(inner.forward.writes) + made
    steps = brought_in(runs, w, inner.forward.writes, moved, schedule)
    return _together(runs, steps, chunk_grad.lower(inner, schedule, runs, *unweighed), put, held)


def put_back(spec: ScanGrad, inner: ScanGrad, runs: Runs, schedule: Schedule) -> tuple[list[Step], list[Tensor]]:
    """From sorted gradients those that are asked for, and the sorted ones."""
    w, small = spec.forward.writes, moving(schedule)
    put = [Step(scatter.lower(runs, w, m, small), small) for m in _gradients(spec, inner)]
    if inner.grad_beta is None:
        return put, _made(inner, w)
    more, scratch = _rates(spec, inner, runs, schedule)
    return put + more, _made(inner, w) + scratch


def _runs(name: str, w: Writes, schedule: Schedule) -> Runs:
    assert w.route is not None
    if not w.route.freeze:
        raise ScheduleError("parts that rest decay with every token; use order 'mask'")
    return sort.runs(name, w, schedule)


def moving(schedule: Schedule) -> Schedule:
    """Of programs that only move memory."""
    return replace(schedule, warps=4, stages=1, descriptors=False, registers=0)


def strengths(w: Writes) -> list[Tensor]:
    """The sorted e·beta, where there is one."""
    return [Tensor(w.beta.name, "float32", ("B", ROOM, w.heads))] if w.beta is not None else []


def brought_in(runs: Runs, w: Writes, inner: Writes, moved: list[Moved], schedule: Schedule) -> list[Step]:
    """The route turned around, and what tokens bring sorted."""
    small = moving(schedule)
    steps = runs.steps(schedule) + [Step(gather.lower(runs, w, m, small), small) for m in moved]
    if inner.beta is not None:
        one = replace(small, warps=1)
        steps.append(Step(gather.lower_rate(runs, w, inner.beta, one), one))
    return steps


def _together(runs: Runs, ahead: list[Step], inner: Lowered, after: list[Step], held: list[Tensor]) -> Lowered:
    found = {t.name: t for t in held}
    scratch = (*runs.scratch(), *(as_scratch(t) for t in found.values()), *inner.scratch)
    return Lowered((*ahead, *inner.steps, *after), scratch, (*runs.params(), *over(runs, inner.params)))


def over(runs: Runs, given: Sequence[tuple[str, Expr]]) -> list[tuple[str, Expr]]:
    """The launch parameters of the sorted programs over those of the spec."""
    known = dict(runs.params())
    return [(name, substitute(value, known)) for name, value in given]


def _pairs(spec: ScanGrad, inner: ScanGrad) -> list[tuple[Operand | None, Operand | None, int, int, bool]]:
    """Gradients as they are asked for and sorted, with heads, last dim, and whether e multiplies them."""
    w, e = spec.forward.writes, sort.weighs(spec.forward.writes)
    left = e and not sort.divides(w)
    found: list[tuple[Operand | None, Operand | None, int, int, bool]] = [
        (q, s, r.heads, w.rows, r.weighed and left)
        for q, s, r in zip(spec.grad_q, inner.grad_q, spec.forward.reads, strict=True)
    ]
    found += [(spec.grad_k, inner.grad_k, w.heads, w.rows, False), (spec.grad_v, inner.grad_v, w.heads, w.cols, False)]
    found.append((spec.grad_decay, inner.grad_decay, w.heads, w.rows if w.decay_kind == "key" else 0, False))
    found.append((spec.grad_erase[0], inner.grad_erase[0], w.heads, w.rows, False))
    return [*found, (spec.grad_erase[1], inner.grad_erase[1], w.heads, w.rows, e)]


def _gradients(spec: ScanGrad, inner: ScanGrad) -> list[Moved]:
    """What is put back as it is, or times e."""
    return [
        Moved(asked, made, heads, last, weighed)
        for asked, made, heads, last, weighed in _pairs(spec, inner)
        if asked is not None and made is not None
    ]


def _made(inner: ScanGrad, w: Writes) -> list[Tensor]:
    """The sorted gradients."""
    found = [
        Tensor(made.name, made.dtype, ("B", ROOM, heads, *([last] if last else [])))
        for _, made, heads, last, _ in _pairs(inner, inner)
        if made is not None
    ]
    rates = [x for x in (inner.grad_beta, inner.grad_weight) if x is not None]
    return found + [Tensor(x.name, "float32", ("B", ROOM, w.heads)) for x in rates]


def _rates(spec: ScanGrad, inner: ScanGrad, runs: Runs, schedule: Schedule) -> tuple[list[Step], list[Tensor]]:
    """The gradients of beta and of e."""
    w, rate, asked = spec.forward.writes, inner.grad_beta, spec.grad_weight
    assert rate is not None
    small, held = moving(schedule), [Tensor(rate.name, "float32", ("B", ROOM, w.heads))]
    if inner.grad_weight is not None:
        held.append(Tensor(inner.grad_weight.name, "float32", ("B", ROOM, w.heads)))
    sides = _multiplied(spec, inner) if asked is not None else []
    count = 1 + len(sides)
    shares = (asked.name, count) if asked is not None else None
    steps = [Step(scatter.lower_rates(runs, w, held, spec.grad_beta, shares, small), replace(small, warps=1))]
    if asked is None:
        return steps, []
    for number, pair in enumerate(sides):
        program = scatter.lower_products(runs, w, pair, number + 1, count, asked.name, small)
        steps.append(Step(program, small))
    made = scatter.shares(runs, asked.name, w, count)
    assert w.route is not None
    target = Target(asked, w.route.lists, "slots")
    steps.append(Step(token_sum.program(runs.name, w, target, made, small), small))
    return steps, [made]


def _multiplied(spec: ScanGrad, inner: ScanGrad) -> list[tuple[Moved, Tensor]]:
    """Vectors that e multiplies, beside k and v, and the gradients of the products; ``weighed`` those without e."""
    w, found = spec.forward.writes, list[tuple[Moved, Operand | None]]()
    for r, s in zip(spec.forward.reads, inner.grad_q, strict=True):
        if r.weighed and not sort.on_the_way(spec):
            found.append((Moved(r.q, r.q, r.heads, w.rows, sort.divides(w)), s))
    if w.erase is not None:
        found.append((Moved(w.erase[1], w.erase[1], w.heads, w.rows), inner.grad_erase[1]))
    return [(m, Tensor(g.name, g.dtype, ("B", ROOM, m.heads, m.last))) for m, g in found if g is not None]
