"""The scan of a sorted sequence: the tokens of part 0 first, in chunks of their own, then those of part 1, and so on.

Sorted tensors are ``[B,room,heads,…]`` and hold zeros where a chunk has fewer tokens. Their beta is e·beta. Forward, e
multiplies what is put back. Backward it multiplies the sorted gradients of outputs where it is a softmax, and e's own
gradient through what is read is that of queries times the queries, over e: where e is 0 a softmax hands nothing on.
Another e multiplies the sorted queries, so that nothing is divided by it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from sparsec.lower.scan.chunk.parts import needs_keyed
from sparsec.lower.scan.runs import ROOM, Runs
from sparsec.plan.states.scan_specs import Operand, Read, Scan, ScanGrad, Writes
from sparsec.tile.language import Tensor
from sparsec.tile.schedule import Schedule


@dataclass(frozen=True, slots=True)
class Moved:
    """A tensor per token and head, and the same sorted.

    Attributes:
        last: extent of its last dim; 0 where it has none.
        weighed: whether it is multiplied by e on its way.
        slot: to whose part alone it belongs; None is every slot.
    """

    given: Operand
    sorted: Operand
    heads: int
    last: int = 0
    weighed: bool = False
    slot: int | None = None

    def tensors(self, w: Writes) -> tuple[Tensor, Tensor]:
        """As it is given, and sorted."""
        dims = (self.heads, *([self.last] if self.last else []))
        given = Tensor(self.given.name, self.given.dtype, ("B", w.length, *dims))
        return given, Tensor(self.sorted.name, self.sorted.dtype, ("B", ROOM, *dims))


def runs(name: str, w: Writes, schedule: Schedule) -> Runs:
    """The route turned around, cut into chunks."""
    assert w.route is not None
    return Runs(name, w.route, w.length, schedule.rows, cut=True)


def writes(name: str, w: Writes) -> Writes:
    """How sorted tokens write."""
    beta = Operand(f"{name}_sorted_beta", "float32") if w.beta is not None or weighs(w) else None
    erase = None if w.erase is None else (sorted_(name, "a", w.erase[0]), sorted_(name, "b", w.erase[1]))
    decay = sorted_(name, "decay", w.decay) if w.decay is not None else None
    k, v = sorted_(name, "k", w.k), sorted_(name, "v", w.v)
    return replace(w, k=k, v=v, beta=beta, decay=decay, erase=erase, length=ROOM, route=None)


def weighs(w: Writes) -> bool:
    """Whether parts have an e."""
    return w.route is not None and w.route.weight is not None


def divides(w: Writes) -> bool:
    """Whether backward e multiplies gradients of outputs, so that its own is a quotient by it."""
    return weighs(w) and w.route is not None and w.route.softmax


def on_the_way(spec: ScanGrad) -> bool:
    """Whether a program with queries and their gradients at hand makes e's gradient."""
    reads, w = spec.forward.reads, spec.forward.writes
    return spec.grad_weight is not None and len(reads) == 1 and reads[0].weighed and not needs_keyed(w)


def unweighed(spec: ScanGrad) -> list[Operand]:
    """The sorted queries without e, as the forward has them, where that program reads others."""
    wanted = on_the_way(spec) and not divides(spec.forward.writes)
    return [sorted_(spec.name, "q0", spec.forward.reads[0].q)] if wanted else []


def sorted_(name: str, which: str, operand: Operand) -> Operand:
    """Where a tensor goes."""
    return Operand(f"{name}_sorted_{which}", operand.dtype, operand.unit)


def brought(name: str, w: Writes) -> list[Moved]:
    """What tokens bring to be written, beside beta."""
    made = writes(name, w)
    found = [Moved(w.k, made.k, w.heads, w.rows), Moved(w.v, made.v, w.heads, w.cols)]
    if w.decay is not None and made.decay is not None:
        found.append(Moved(w.decay, made.decay, w.heads, w.rows if w.decay_kind == "key" else 0))
    if w.erase is not None and made.erase is not None:
        a, b = zip(w.erase, made.erase, strict=True)
        found += [Moved(*a, w.heads, w.rows), Moved(*b, w.heads, w.rows, weighed=weighs(w))]
    return found


def surprise(w: Writes, given: Operand | None, made: Operand | None) -> list[Moved]:
    """What a delta rule writes, or its gradient, if there is one."""
    return [Moved(given, made, w.heads, w.cols)] if given is not None and made is not None else []


def answers(name: str, w: Writes, read: Read, number: int) -> Moved:
    """What a read makes; in fp32 where something is still to be done with it."""
    weighed = read.weighed and weighs(w)
    exact = weighed or (w.slots > 1 and read.slot is None)
    dtype = "float32" if exact else read.out.dtype
    out = Operand(f"{name}_sorted_out{number}", dtype)
    return Moved(read.out, out, read.heads, w.cols, weighed, read.slot)


def scan(spec: Scan) -> Scan:
    """The scan of the sorted sequence."""
    name, w = spec.name, spec.writes
    reads = tuple(
        replace(r, q=sorted_(name, f"q{n}", r.q), out=answers(name, w, r, n).sorted, weighed=False, slot=None)
        for n, r in enumerate(spec.reads)
    )
    surprise = sorted_(name, "surprise", spec.surprise) if spec.surprise is not None else None
    return replace(spec, writes=writes(name, w), reads=reads, surprise=surprise)


def gradient(spec: ScanGrad) -> ScanGrad:
    """The adjoint of the sorted sequence; e and beta have one gradient there, that of their product."""
    name, w = spec.name, spec.forward.writes
    forward = scan(replace(spec.forward, name=name))
    rated = spec.grad_beta is not None or spec.grad_weight is not None
    asked, apart = spec.grad_weight is not None, on_the_way(spec)
    reads = tuple(
        replace(s, q=sorted_(name, f"weighed_q{n}", r.q)) if r.weighed and weighs(w) and not divides(w) else s
        for n, (r, s) in enumerate(zip(spec.forward.reads, forward.reads, strict=True))
    )
    queries = zip(spec.grad_q, spec.forward.reads, strict=True)
    return replace(
        spec,
        forward=replace(forward, reads=reads),
        grads=tuple(sorted_(name, f"do{n}", x) for n, x in enumerate(spec.grads)),
        grad_q=tuple(
            _share(name, f"dq{n}", q, w, r.q, asked and r.weighed and not apart) for n, (q, r) in enumerate(queries)
        ),
        grad_k=_share(name, "dk", spec.grad_k, w),
        grad_v=_share(name, "dv", spec.grad_v, w),
        grad_beta=Operand(f"{name}_sorted_dbeta", "float32") if rated else None,
        grad_decay=_share(name, "ddecay", spec.grad_decay, w),
        grad_erase=(
            _share(name, "da", spec.grad_erase[0], w),
            _share(name, "db", spec.grad_erase[1], w, w.erase[1] if w.erase else None, asked),
        ),
        grad_weight=Operand(f"{name}_sorted_de", "float32") if apart else None,
        surprise=sorted_(name, "dsurprise", spec.surprise) if spec.surprise is not None else None,
    )


def _share(
    name: str, which: str, operand: Operand | None, w: Writes, like: Operand | None = None, asked: bool = False
) -> Operand | None:
    """A gradient; in fp32 where several slots add up. ``asked``: also where it is only needed for e's."""
    if operand is None and not (asked and like is not None):
        return None
    dtype = "float32" if w.slots > 1 or operand is None else operand.dtype
    return Operand(f"{name}_sorted_{which}", dtype)
