"""The backward of a chunked scan under a schedule: its tensors, its scratch, and which specs have this form."""

from __future__ import annotations

from dataclasses import dataclass

from sparsec.lower.scan.chunk import units
from sparsec.lower.scan.chunk.form import SURPRISED, checked, meets
from sparsec.lower.scan.chunk.parts import CHUNKS, PADDED, SEGMENTS, Chunk, Chunked, needs_keyed
from sparsec.lower.scan.runs import Runs
from sparsec.plan.states.scan_specs import Operand, Read, ScanGrad
from sparsec.tile.language import Node, Tensor
from sparsec.tile.schedule import Schedule, ScheduleError


@dataclass(frozen=True, slots=True)
class Back:
    """A scan's backward.

    States and their gradients at the ends of chunks are kept for the last program, which then works on all chunks side
    by side: in the keys' dtype, in fp32 where gradients cancel.

    Attributes:
        unweighed: queries without e; their products with the gradients of those with it are e's. Where there are none,
            and e's gradient is asked for, it is made times e.
    """

    spec: ScanGrad
    own: Chunked
    unweighed: Operand | None = None

    @property
    def read(self) -> Read:
        """The only read."""
        return self.spec.forward.reads[0]

    @property
    def grad_out(self) -> Tensor:
        """``[B,N,H,DV]``."""
        return self.own.tensor(self.spec.grads[0], self.read.heads, self.own.writes.cols)

    @property
    def queries(self) -> Tensor:
        """``[B,N,H,D]``."""
        return self.own.tensor(self.read.q, self.read.heads, self.own.writes.rows)

    def unweighed_queries(self) -> list[Tensor]:
        """``[B,N,H,D]``, where the gradient of e is asked for."""
        w, given = self.own.writes, self.unweighed
        return [] if given is None else [self.own.tensor(given, self.read.heads, w.rows)]

    def of_queries(self, chunk: Chunk, token: Node) -> Node | None:
        """What brings queries of some tokens to length 1, if they are to have it."""
        return units.factor(chunk, self.read.q, self.read.heads, chunk.head, token)

    def lengths(self) -> list[Tensor]:
        """Where that is read, of queries and of keys."""
        w = self.own.writes
        return [*units.tensors(self.own, self.read.q, self.read.heads), *units.tensors(self.own, w.k, w.heads)]

    @property
    def states(self) -> Tensor:
        """States before each chunk ``[B,HKV,chunks,D,DV]``."""
        return self._per_chunk("states")

    @property
    def grad_states(self) -> Tensor:
        """Gradients of the states after each chunk."""
        return self._per_chunk("grad_states")

    def _per_chunk(self, name: str) -> Tensor:
        w = self.own.writes
        dtype = "float32" if w.split else w.half
        return Tensor(f"{self.own.name}_{name}", dtype, ("B", w.heads, CHUNKS, w.rows, w.cols))

    @property
    def surprises(self) -> Tensor:
        """What a delta rule writes, without beta ``[B,HKV,tokens,DV]``."""
        w = self.own.writes
        return Tensor(f"{self.own.name}_surprises", w.half, ("B", w.heads, PADDED, w.cols))

    @property
    def grad_values(self) -> Tensor:
        """The gradient of v: an output, or scratch where nobody asks for it and a delta rule needs it."""
        w = self.own.writes
        given = self.spec.grad_v or Operand(f"{self.own.name}_grad_v", w.v.dtype)
        return self.own.tensor(given, w.heads, w.cols)

    @property
    def grad_ends(self) -> Tensor:
        """Gradients of the states before each segment where those after it have none; fp32."""
        return self._per_segment("grad_ends")

    @property
    def grad_starts(self) -> Tensor:
        """Gradients of the states after each segment; fp32."""
        return self._per_segment("grad_starts")

    def _per_segment(self, name: str) -> Tensor:
        w = self.own.writes
        return Tensor(f"{self.own.name}_{name}", "float32", ("B", w.heads, SEGMENTS, w.rows, w.cols))

    def scratch(self) -> list[Tensor]:
        """What is written beyond what the forward's programs write."""
        found = [self.states, self.grad_states] + [self.surprises] * self.own.delta
        if self.own.delta and self.spec.grad_v is None:
            found.append(self.grad_values)
        return found + [self.grad_ends, self.grad_starts] * (self.own.splits > 1)


def refusal(spec: ScanGrad) -> str | None:
    """Why a backward has no chunk form beyond what the forward says, in a sentence; None where it has."""
    reads, w = spec.forward.reads, spec.forward.writes
    if len(reads) != 1 or reads[0].heads != w.heads:
        heads = " and ".join(str(r.heads) for r in reads) or "no"
        one = "a backward in chunks has one read of as many heads: use order 'token'"
        return f"reads have {heads} heads, states {w.heads}; {one}"
    if reads[0].turned:
        return "states that are read turned have no chunk form; use order 'token'"
    if reads[0].when != "after" and not needs_keyed(w):
        return "a read before the own write has no chunk form of its backward here; use order 'token'"
    if spec.surprise is not None and needs_keyed(w):
        return f"{SURPRISED}; use order 'token'"
    if not meets(reads[0].q, w):
        return f"{reads[0].q.name} is {reads[0].q.dtype}, keys are {w.k.dtype}; use order 'token'"
    taken = (w.half,) if needs_keyed(w) else (w.half, "float32")  # rounded, or split, as they are loaded
    if spec.grads[0].dtype not in taken:
        multiplied = " or ".join(dict.fromkeys(taken))
        return f"the outputs' gradient is {spec.grads[0].dtype}, chunks multiply {multiplied}; use order 'token'"
    return None


def back(spec: ScanGrad, schedule: Schedule, runs: Runs | None = None, unweighed: Operand | None = None) -> Back:
    """The backward in chunks; ScheduleError where there is no such form."""
    own = checked(spec.name, spec.forward.writes, schedule, runs)
    if sentence := refusal(spec):
        raise ScheduleError(sentence)
    return Back(spec, own, unweighed)
