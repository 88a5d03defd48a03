"""Gradients per token from the states before and the gradients after every chunk, all chunks side by side.

With D_x the gradient of what a row is answered (scale dO; of a, what answers solve), and C_y what a column carries:

    dA_xy = D_x C_yᵀ (where x sees y)
    dx = e^Γ (D_x Mᵀ) + Σ_y dA_xy y e^{Γ_i − Γ_j}        dy = e^{Γ_C − Γ} (C_y Gᵀ) + Σ_x dA_xyᵀ x e^{Γ_i − Γ_j}

A log-decay scales all that passes its token: its gradient sums, from its token on, x dx − y dy.
"""

from __future__ import annotations

from dataclasses import dataclass

from sparsec.lower.scalars import add, mul, sub
from sparsec.lower.scan.chunk_parts import CHUNKS, Chunk, column_limit, power_of_two
from sparsec.lower.scan.chunk_state import axes
from sparsec.lower.scan.keyed.back_near import Near
from sparsec.lower.scan.keyed.back_sums import Sums
from sparsec.lower.scan.keyed.backward import KeyedBack
from sparsec.lower.scan.keyed.fades import Fades, Space
from sparsec.lower.scan.keyed.prepare import inputs
from sparsec.lower.scan.keyed.sides import Side
from sparsec.plan.scan_specs import Operand
from sparsec.tile import build as tile
from sparsec.tile.language import Node, Program, Tensor


def lower(b: KeyedBack) -> Program:
    """One (chunk, head, batch) per grid point."""
    own = b.keyed.own
    with tile.Builder() as builder:
        a = axes(builder, own, "cnde")
        chunk = Chunk(own, tile.program_id(2), tile.program_id(1), tile.program_id(0))
        fades = Fades(b.keyed, chunk, Space(a.queries, a.dims, a.keys))
        sums = Sums(b, chunk, a)
        found = _Tokens(b, fades, sums, Near(fades, sums.squares()), {})
        found.all()
        tensors = [*inputs(b.keyed), *sums.tensors(), *found.stored.values()]
        return own.program(builder, "", tensors, (tile.param(CHUNKS), own.writes.heads, tile.param("B")))


@dataclass(frozen=True, slots=True)
class _Tokens:
    """One chunk of one head.

    Attributes:
        stored: the tensors that were written, by name.
    """

    b: KeyedBack
    fades: Fades
    sums: Sums
    near: Near
    stored: dict[str, Tensor]

    def all(self) -> None:
        """Everything that is asked for."""
        f, keyed, spec = self.fades, self.b.keyed, self.b.back.spec
        slope, own_slope, grad_a = tile.full(0.0, f.at.rows, f.at.dims), None, None
        for side in keyed.rows:
            found = add(mul(self.sums.of_row(side), power_of_two(f.since(side))), self.near.row(side))
            passed = mul(f.vectors(side), found)
            slope, own_slope = add(slope, passed), passed if side.shifted else own_slope
            grad_a = found if side.negated else grad_a
            self._wide({"q": spec.grad_q[0], "a": spec.grad_erase[0]}[side.name], found)
        ends = mul(self.sums.kept(), power_of_two(f.total()))
        for side in keyed.columns:
            far = mul(tile.rename(self.sums.of_column(side), f.at.columns, f.at.rows), f.left())
            found, y = add(far, self.near.column(side)), f.vectors(side)
            slope = sub(slope, mul(y, found))
            ends = add(ends, tile.reduce("sum", mul(y, far), f.at.rows))
            self._column(side, found, grad_a)
        self._decay(slope, own_slope, ends)

    def _column(self, side: Side, found: Node, grad_a: Node | None) -> None:
        """The gradients of beta and k, or of b."""
        f, spec = self.fades, self.b.back.spec
        if side.name == "b":
            self._wide(spec.grad_erase[1], found)
            return
        if spec.grad_beta is not None:
            k = f.vectors(Side("k", side.operand))
            self._narrow(spec.grad_beta, tile.reduce("sum", mul(k, found), f.at.dims))
        beta = f.chunk.beta(f.at.rows)
        found = found if beta is None else mul(found, beta)
        self._wide(spec.grad_k, found if grad_a is None else sub(found, grad_a))

    def _decay(self, slope: Node, own_slope: Node | None, ends: Node) -> None:
        """The gradient of log-decays: slopes summed from the own token on, and what the whole chunk passes."""
        f, spec, w = self.fades, self.b.back.spec, self.b.keyed.own.writes
        if spec.grad_decay is None:
            return
        after = sub(tile.reduce("sum", slope, f.at.rows), sub(tile.scan(slope, f.at.rows), slope))
        found = add(after, ends)
        found = found if own_slope is None else sub(found, own_slope)
        if w.decay_kind == "key":
            self._wide(spec.grad_decay, found)
        else:
            self._narrow(spec.grad_decay, tile.reduce("sum", found, f.at.dims))

    def _wide(self, operand: Operand | None, value: Node) -> None:
        """Store a gradient per key dim ``[c,d]``."""
        if operand is None:
            return
        f, w = self.fades, self.b.keyed.own.writes
        tensor = self.stored.setdefault(operand.name, self.b.keyed.own.tensor(operand, w.heads, w.rows))
        bounds: dict[int, tile.Value] = {1: tile.param(w.length)}
        if limit := column_limit(w.rows, f.at.dims.size):
            bounds[3] = limit
        place = (f.chunk.batch, f.chunk.token(f.at.rows), f.chunk.head, tile.iota(f.at.dims))
        tile.store(tensor, *place, value=tile.cast(value, tensor.dtype), bounds=bounds)

    def _narrow(self, operand: Operand, value: Node) -> None:
        """Store a gradient per token ``[c]``."""
        f, w = self.fades, self.b.keyed.own.writes
        tensor = self.stored.setdefault(operand.name, self.b.keyed.own.tensor(operand, w.heads))
        place = (f.chunk.batch, f.chunk.token(f.at.rows), f.chunk.head)
        tile.store(tensor, *place, value=tile.cast(value, tensor.dtype), bounds={1: tile.param(w.length)})
