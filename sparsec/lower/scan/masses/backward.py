"""The programs of the adjoint of a mixture of masses of keys."""

from __future__ import annotations

from dataclasses import dataclass, replace

from sparsec.lower.inverse.index import as_scratch
from sparsec.lower.lowered import Lowered, Step
from sparsec.lower.scan.masses import asked, level, queries, sums, weights, written
from sparsec.lower.scan.masses.forward import ROWS, held, joined, masses
from sparsec.lower.scan.masses.level import Prepared
from sparsec.lower.scan.sorted import lower as sorting
from sparsec.lower.scan.sorted import spec as sort
from sparsec.plan.states.mixture_specs import StateMixtureGrad
from sparsec.plan.states.scan_specs import Operand, Scan, ScanGrad
from sparsec.tile.language import Tensor
from sparsec.tile.schedule import Schedule

WARPS = 4
"""Of programs that hold several tiles of masses and their gradients; eight take longer where no loop holds one more."""
TOKENS = 8
"""Of a program that adds up gradients of queries."""


def lower(spec: StateMixtureGrad, schedule: Schedule) -> Lowered:
    """The weights and their gradient -> all that is asked for."""
    m, few = spec.mixture, replace(level.small(schedule), warps=4)
    slopes = [_slopes(spec, n) for n in range(len(spec.forward.masses))]
    narrow = replace(few, rows=ROWS)
    first = Step(weights.lower_slopes(m, slopes, narrow), narrow)
    made, read = list[Lowered](), list[weights.Numbers]()
    for number, slope in enumerate(slopes):
        each = _Level(spec, number, slope, schedule)
        lowered, ahead = each.lowered()
        made.append(lowered)
        read.append(weights.numbers(ahead, asked.gradient(ahead.level, m.forward.dtype), str(number)))
    last = replace(few, rows=TOKENS)
    end = [Step(queries.lower(m, read, last), last)] if m.grad_q is not None else []
    found = joined(made, end)
    return replace(found, steps=(first, *found.steps), scratch=(*(as_scratch(t) for t in slopes), *found.scratch))


def _slopes(spec: StateMixtureGrad, number: int) -> Tensor:
    f = spec.mixture.forward
    return Tensor(f"{spec.name}_slopes{number}", "float32", ("B", f.length, f.heads))


@dataclass(frozen=True, slots=True)
class _Level:
    """One candidate's programs."""

    spec: StateMixtureGrad
    number: int
    slopes: Tensor
    schedule: Schedule

    @property
    def grad(self) -> ScanGrad | None:
        """What is asked of it."""
        return self.spec.masses[self.number]

    @property
    def scan(self) -> Scan:
        """Its scan, whose scratch here is its own."""
        name = self.grad.name if self.grad is not None else f"{self.spec.name}_mass{self.number}"
        return replace(self.spec.forward.masses[self.number], name=name)

    def prepared(self) -> tuple[Prepared, Tensor]:
        """Tokens in the level's order, gradients of scores too."""
        f, scan = self.spec.mixture.forward, self.scan
        asking = Operand(f.q, f.dtype)
        if scan.writes.route is None:
            return level.prepared(scan, asking, f.heads, self.schedule), self.slopes
        given = Operand(self.slopes.name, "float32")
        made = sort.sorted_(scan.name, "slopes", given)
        more = sort.Moved(given, made, f.heads)
        ahead = level.prepared(scan, asking, f.heads, self.schedule, (more,))
        return ahead, ahead.level.own.tensor(made, f.heads)

    def lowered(self) -> tuple[Lowered, Prepared]:
        """Masses anew, what queries ask of them, and what that means for what was added up."""
        (ahead, slopes), f, small = self.prepared(), self.spec.mixture.forward, level.small(self.schedule)
        own = ahead.level
        wide = replace(small, warps=WARPS if own.group <= asked.MOST_AT_ONCE else 2 * WARPS)
        dq = asked.gradient(own, f.dtype) if self.spec.mixture.grad_q is not None else None
        steps = [*masses(own, self.schedule), Step(asked.lower(own, slopes, f.scale, dq), wide)]
        scratch = [*held(own), asked.handed(own), *([dq] if dq is not None else [])]
        if self.grad is not None:
            starts = sums.lower_starts(own, asked.handed(own), written.after(own), "afters", back=True)
            made, put, more = self._made(ahead)
            steps += [Step(starts, small), Step(written.lower(own, slopes, f.scale, made), wide), *put]
            scratch += [written.after(own), *more]
        return ahead.lowered(steps, scratch, str(self.number)), ahead

    def _made(self, ahead: Prepared) -> tuple[written.Made, list[Step], list[Tensor]]:
        """The gradients in the level's order, what puts them back, and its scratch."""
        grad = self.grad
        assert grad is not None
        if ahead.runs is None:
            return written.Made(grad.grad_v, grad.grad_beta, grad.grad_decay), [], []
        inner = sort.gradient(grad)
        put, held = sorting.put_back(grad, inner, ahead.runs, self.schedule)
        return written.Made(inner.grad_v, inner.grad_beta, inner.grad_decay), put, held
