"""The adjoint of levels token by token: back over the tokens with all levels before each of them known.

A first program walks forward and keeps the levels before every few tokens. The second goes back: it walks again from
the nearest that were kept, and carries G_l = dL/dM_l. With Y_l the levels after a token's write, F_l = exp(decay) M_l,
R_l what the erase term reads, y_l = aᵀR_l and p = beta k:

    G <- its share through the carry,  G_l += scale gate_l q doᵀ,  dq = scale Σ gate_l Y_l do,  dgate_l = scale q·Y_l do
    dv = G_0ᵀp,  dp = G_0 v,  dy_l = G_lᵀb,  db = Σ G_l y_l,  da = Σ R_l dy_l
    dF_l = G_l (+ a dy_lᵀ where R = F),  d decay = Σ dF_l · F_l,  G_l <- exp(decay) dF_l (+ a dy_lᵀ where R = M)

Right for every rule, and for levels that begin or end outside the call.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

from sparsec.lower.fenwick.token import carried, first, full_block, levels_shape, walked
from sparsec.lower.inverse.index import as_scratch
from sparsec.lower.lowered import Lowered, Step
from sparsec.lower.scalars import add, ceil_div, mul, sub
from sparsec.lower.scan.cell import Cell, cell, grid, parameters, vector
from sparsec.lower.scan.token import sums
from sparsec.lower.scan.token.forward import query, readers
from sparsec.lower.scan.token.gradient import across, along
from sparsec.lower.scan.token.sums import Found, Target
from sparsec.lower.scan.token.visit import Token, token
from sparsec.plan.states.fenwick_specs import LadderGrad
from sparsec.plan.states.scan_specs import Scan, ScanGrad
from sparsec.scalar.expr import Expr, var
from sparsec.scalar.fn import Fn
from sparsec.tile import build as tile
from sparsec.tile.language import Node, Program, Tensor
from sparsec.tile.schedule import Schedule

KEPT = "LC"
"""The launch parameter with how often the levels are kept."""


def lower(spec: LadderGrad, schedule: Schedule) -> Lowered:
    """The gradients of everything that a ladder reads, from those of its outputs and of its last levels."""
    w, gate = spec.forward.writes, _gate(spec)
    found = [*sums.targets(_as_scan(spec)), *([gate] if gate is not None else [])]
    added, shares = sums.sums(spec.name, w, found, schedule)
    steps = (Step(_levels(spec, schedule), schedule), Step(_back(spec, schedule), schedule), *added)
    blocks: Expr = (var(w.length) + (schedule.block - 1)) // schedule.block
    return Lowered(steps, (as_scratch(_kept(spec)), *shares), ((KEPT, blocks),))


def _as_scan(spec: LadderGrad) -> ScanGrad:
    """The same gradients of one state, by which tokens store theirs."""
    f = spec.forward
    made = spec.grad_k, spec.grad_v, spec.grad_beta, spec.grad_decay, spec.grad_erase
    return ScanGrad(spec.name, Scan(f.name, f.writes, (f.read,), f.dtype), (spec.grad,), None, (spec.grad_q,), *made)


def _gate(spec: LadderGrad) -> Target | None:
    f = spec.forward
    return None if spec.grad_gate is None else Target(spec.grad_gate, f.read.heads, "levels", levels=f.levels)


def _kept(spec: LadderGrad) -> Tensor:
    """The levels above 0 before every few tokens."""
    w = spec.forward.writes
    return Tensor(f"{spec.name}_levels", "float32", ("B", KEPT, spec.forward.levels - 1, w.heads, w.rows, w.cols))


def _levels(spec: LadderGrad, schedule: Schedule) -> Program:
    """Keeps the levels before every ``block`` tokens."""
    f = spec.forward
    with tile.Builder() as builder:
        own, length = cell(builder, f.writes, schedule), tile.param(f.writes.length)

        def visit(number: Node, *held: Node) -> Sequence[Node]:
            for n, level in enumerate(held):
                own.keep(_kept(spec), own.batch, number, n, own.head, value=level)
            start = mul(number, schedule.block)
            return _walk(own, start, tile.apply(Fn.MINIMUM, add(start, schedule.block), length), held)

        tile.loop(0, ceil_div(length, schedule.block), 1, first(f, own), visit)
        tensors = list(own.tensors.values())
        return builder.program(f"{spec.name}_walk", tensors, parameters(f.writes, None, KEPT), grid(f.writes, schedule))


def _walk(own: Cell, start: Node, end: Node, held: Sequence[Node]) -> list[Node]:
    """The levels above 0 after some tokens."""

    def visit(at: Node, *held: Node) -> Sequence[Node]:
        return carried(add(tile.param("q_offset"), at), walked(token(own, at), held))

    return tile.loop(start, end, 1, list(held), visit)


def _back(spec: LadderGrad, schedule: Schedule) -> Program:
    f = spec.forward
    with tile.Builder() as builder:
        own, length = cell(builder, f.writes, schedule), tile.param(f.writes.length)
        back, kept = _Back(spec, own, schedule, sums.found(_as_scan(spec)), _gate(spec)), _kept(spec)

        def visit(number: Node, *grads: Node) -> Sequence[Node]:
            at = sub(sub(length, number), 1)
            block = tile.apply(Fn.TRUNCDIV, at, schedule.block)
            held = [own.state(kept, own.batch, block, n, own.head) for n in range(f.levels - 1)]
            return back.token(token(own, at), _walk(own, mul(block, schedule.block), at, held), grads)

        grads = tile.loop(0, length, 1, _last(spec, own), visit)
        if spec.grad_initial is not None:
            for n, grad in enumerate((own.zero(), *grads)):
                live = full_block(tile.param("q_offset"), n, own.zero(), grad) if n else grad
                own.keep(levels_shape(f, spec.grad_initial), own.batch, n, own.head, value=live)
        tensors = list(own.tensors.values())
        return builder.program(spec.name, tensors, parameters(f.writes, None, KEPT), grid(f.writes, schedule))


def _last(spec: LadderGrad, own: Cell) -> list[Node]:
    """The gradients of the last levels above 0."""
    if spec.grad_final is None:
        return [own.zero()] * (spec.forward.levels - 1)
    tensor = levels_shape(spec.forward, spec.grad_final)
    return [own.state(tensor, own.batch, n, own.head) for n in range(1, spec.forward.levels)]


@dataclass(frozen=True, slots=True)
class _Back:
    """One program's way back."""

    spec: LadderGrad
    own: Cell
    schedule: Schedule
    found: Found
    gate: Target | None

    def token(self, now: Token, held: Sequence[Node], grads: Sequence[Node]) -> list[Node]:
        """The gradients of the levels before a token, from those of the levels after its carry."""
        levels = walked(now, held)
        position = add(tile.param("q_offset"), now.at)
        back = self._read(now, levels, _uncarried(position, [self.own.zero(), *grads]))
        return self._written(now, held, back)

    def _put(self, target: Target | None, now: Token, head: Node, value: Node, level: int | None = None) -> None:
        if target is not None:
            sums.put(now, target, head, value, self.schedule, level)

    def _read(self, now: Token, levels: Sequence[Node], grads: list[Node]) -> list[Node]:
        """The gradients of what heads ask and of their gates; those of levels with their share."""
        own, f = self.own, self.spec.forward
        gate = own.tensor(Tensor(f.gate.name, f.gate.dtype, ("B", f.writes.length, f.read.heads, f.levels)))
        for head in readers(own, f.read):
            given = vector(own, self.spec.grad, f.read.heads, now.at, head, False, True, False)
            given, asked = mul(f.read.scale, given), query(now, f.read, head)
            outer, whole = mul(asked, given), own.zero()
            for n, level in enumerate(levels):
                weight = tile.cast(tile.load(gate, own.batch, now.at, head, n), "float32")
                whole = add(whole, mul(weight, level))
                grads[n] = add(grads[n], mul(weight, outer))
                if self.gate is not None:
                    slope = tile.reduce("sum", mul(asked, along(own, level, given)), own.rows)
                    self._put(self.gate, now, head, slope, n)
            self._put(self.found.q[0], now, head, along(own, whole, given))
        return grads

    def _written(self, now: Token, held: Sequence[Node], grads: Sequence[Node]) -> list[Node]:
        """The gradients of what a token brings, and of the levels above 0 before it."""
        own, found, undecayed = self.own, self.found, self.spec.forward.writes.reads == "undecayed"
        grad_p, erasing = along(own, grads[0], now.v), list[tuple[Node, Node]]()
        self._put(found.v, now, own.head, across(own, grads[0], now.p))
        slopes, before = list[Node](), list[Node]()
        for level, grad in zip(held, grads[1:], strict=True):
            faded = now.faded(level)
            answer, erased = now.answer(level, faded), None
            if answer is not None and now.erase is not None:
                a, b = now.erase
                grad_answer = across(own, grad, b)
                erasing.append((along(own, level if undecayed else faded, grad_answer), along(own, grad, answer)))
                erased = mul(a, grad_answer)
            grad_faded = grad if undecayed or erased is None else add(grad, erased)
            slopes.append(mul(grad_faded, faded))
            gone = now.faded(grad_faded)
            before.append(add(gone, erased) if undecayed and erased is not None else gone)
        if slopes:
            self._decay(now, reduce(add, slopes))
        self._keys(now, grad_p, erasing)
        return before

    def _keys(self, now: Token, grad_p: Node, erasing: Sequence[tuple[Node, Node]]) -> None:
        """The gradients of a key and its rate, and of erase vectors, from those of p, and of a and b in each level."""
        own, found = self.own, self.found
        replaced = self.spec.forward.writes.erase is None
        grad_a, grad_b = (reduce(add, x) for x in zip(*erasing, strict=True)) if erasing else (None, None)
        if grad_b is not None and replaced:
            grad_p = add(grad_p, grad_b)
        grad_k = grad_p if now.rate is None else mul(now.rate, grad_p)
        if grad_a is not None and replaced:
            grad_k = sub(grad_k, grad_a)
        self._put(found.k, now, own.head, grad_k)
        if found.beta is not None:
            self._put(found.beta, now, own.head, tile.reduce("sum", mul(now.k, grad_p), own.rows))
        if grad_a is not None and grad_b is not None and not replaced:
            self._put(found.erase_a, now, own.head, grad_a)
            self._put(found.erase_b, now, own.head, grad_b)

    def _decay(self, now: Token, slope: Node) -> None:
        """The gradient of a log-decay: Σ dF · F."""
        own, target = self.own, self.found.decay
        if target is not None:
            each = tile.reduce("sum", slope, own.rows if target.last == "cols" else own.cols)
            self._put(target, now, own.head, each if target.last else tile.reduce("sum", each, own.rows))


def _uncarried(position: Node, grads: Sequence[Node]) -> list[Node]:
    """The gradients of all levels before the carry of the token at a position."""
    after = add(position, 1)
    full = tile.apply(Fn.AND, after, tile.apply(Fn.SUB, 0, after))  # 2^m
    zero = tile.full(0.0, *grads[0].axes)
    merged: Node = zero
    for n in range(1, len(grads)):
        merged = tile.apply(Fn.WHERE, tile.apply(Fn.EQ, full, 1 << n - 1), grads[n], merged)
    found = [merged]
    for n in range(1, len(grads)):
        stays = tile.apply(Fn.WHERE, tile.apply(Fn.EQ, full, 1 << n - 1), zero, grads[n])
        found.append(tile.apply(Fn.WHERE, tile.apply(Fn.LE, 1 << n, full), merged, stays))
    return found
