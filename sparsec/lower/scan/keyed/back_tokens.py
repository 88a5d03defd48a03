"""Gradients per token from the states before and the gradients after every chunk, all chunks side by side.

With D_x the gradient of what a row is answered (dO; of a, what answers solve), and C_y what a column carries:

    dA_xy = D_x C_yᵀ (where x sees y)
    dx = e^Γ (D_x Mᵀ) + Σ_y dA_xy y e^{Γ_i − Γ_j}        dy = e^{Γ_C − Γ} (C_y Gᵀ) + Σ_x dA_xyᵀ x e^{Γ_i − Γ_j}

A log-decay scales all that passes its token: its gradient sums, from its token on, x dx − y dy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sparsec.lower.scalars import add, mul, sub
from sparsec.lower.scan.chunk.parts import Chunk, column_limit, power, power_of_two
from sparsec.lower.scan.chunk.state import Axes
from sparsec.lower.scan.keyed.back_near import Near
from sparsec.lower.scan.keyed.back_sums import Sums, summed
from sparsec.lower.scan.keyed.backward import KeyedBack
from sparsec.lower.scan.keyed.fades import GROUP, Fades, Space, dims_of, over_dims, where_deep
from sparsec.lower.scan.keyed.prepare import chunk_of, grid, inputs
from sparsec.lower.scan.keyed.sides import Side
from sparsec.plan.states.scan_specs import Operand
from sparsec.tile import build as tile
from sparsec.tile.language import Node, Program, Tensor


def lower(b: KeyedBack, deep: bool) -> Program:
    """One (head, chunk or some, batch) per grid point; ``deep``: again, exactly, chunks that fade too far for tiles."""
    own = b.keyed.own
    with tile.Builder() as builder:
        c, n = builder.axis("c", own.chunk), builder.axis("n", own.chunk)
        axes = Axes(c, builder.axis("d", dims_of(own)), n, builder.axis("e", own.columns))
        group = GROUP if deep else 1
        chunk, found = chunk_of(b.keyed, group), _Tokens(b, axes, deep, {})
        if deep:
            where_deep(b.keyed, chunk, (builder.axis("g", group), axes.dims), found.all)
        else:
            found.all(chunk)
        tensors = [*inputs(b.keyed), *found.tensors()]
        return own.program(builder, "again" if deep else "", tensors, grid(b.keyed, group))


@dataclass(frozen=True, slots=True)
class _Tokens:
    """The gradients of one chunk of one head.

    Attributes:
        stored: the tensors that were written, by name.
    """

    b: KeyedBack
    axes: Axes
    exact: bool
    stored: dict[str, Tensor]

    def all(self, chunk: Chunk) -> None:
        """Everything that is asked for."""
        a, spec, sums = self.axes, self.b.back.spec, Sums(self.b, chunk, self.axes)
        squares = sums.squares()
        of_scalars = spec.grad_decay if self.b.keyed.own.writes.decay_kind != "key" else None
        narrow = [operand for operand in (spec.grad_beta, of_scalars) if operand is not None]

        def visit(at: Space, *totals: Node) -> Sequence[Node]:
            fades = Fades(self.b.keyed, chunk, at, self.exact)
            part = _Part(self, fades, sums, Near(fades, squares), {})
            part.all()
            return [add(total, part.narrow[o.name]) for o, total in zip(narrow, totals, strict=True)]

        inits = [tile.full(0.0, a.queries)] * len(narrow)
        found = over_dims(self.b.keyed.own, (a.queries, a.dims, a.keys), inits, visit)
        for operand, value in zip(narrow, found, strict=True):
            self._narrow(chunk, operand, value)

    def _narrow(self, chunk: Chunk, operand: Operand, value: Node) -> None:
        """Store a gradient per token ``[c]``."""
        w = self.b.keyed.own.writes
        tensor = self.stored.setdefault(operand.name, self.b.keyed.own.tensor(operand, w.heads))
        place = (chunk.batch, chunk.token(self.axes.queries), chunk.head)
        tile.store(tensor, *place, value=tile.cast(value, tensor.dtype), bounds={1: tile.param(w.length)})

    def tensors(self) -> list[Tensor]:
        """What is read and written beside what tokens bring."""
        return [*summed(self.b), *[self.b.keyed.totals] * self.exact, *self.stored.values()]


@dataclass(frozen=True, slots=True)
class _Part:
    """Some key dims.

    Attributes:
        narrow: gradients per token of these key dims ``[c]``, by the name of what they are part of.
    """

    whole: _Tokens
    fades: Fades
    sums: Sums
    near: Near
    narrow: dict[str, Node]

    def all(self) -> None:
        """Everything that is asked for."""
        f, keyed, spec, dim = self.fades, self.fades.keyed, self.whole.b.back.spec, self.fades.at.dim
        slope, own_slope, grad_a = tile.full(0.0, f.at.rows, f.at.dims), None, None
        for side in keyed.rows:
            far = mul(self.sums.of_row(side, dim), f.kept(side))
            near, passed = self.near.row(side)
            found, passed = add(far, near), add(passed, mul(f.vectors(side), far))
            slope, own_slope = add(slope, passed), passed if side.shifted else own_slope
            found = found if side.factor == 1.0 else mul(found, side.factor)
            grad_a = found if side.name == "a" and keyed.tied else grad_a
            self._wide({"q": spec.grad_q[0], "a": spec.grad_erase[0]}[side.name], found)
        ends = mul(self.sums.kept(dim), power_of_two(f.total()))
        for side in keyed.columns:
            far = mul(tile.rename(self.sums.of_column(side, dim), f.at.columns, f.at.rows), f.left())
            near, passed = self.near.column(side)
            through = mul(f.vectors(side), far)
            slope, ends = sub(slope, add(passed, through)), add(ends, tile.reduce("sum", through, f.at.rows))
            self._column(side, add(far, near), grad_a)
        self._decay(slope, own_slope, ends)

    def _column(self, side: Side, found: Node, grad_a: Node | None) -> None:
        """The gradients of beta and k, or of b."""
        f, spec = self.fades, self.whole.b.back.spec
        if side.name == "b":
            self._wide(spec.grad_erase[1], found)
            return
        if spec.grad_beta is not None:
            k = f.vectors(Side("k", side.operand))
            self.narrow[spec.grad_beta.name] = tile.reduce("sum", mul(k, found), f.at.dims)
        beta = f.chunk.beta(f.at.rows)
        found = found if beta is None else mul(found, beta)
        self._wide(spec.grad_k, found if grad_a is None else add(found, grad_a))

    def _decay(self, slope: Node, own_slope: Node | None, ends: Node) -> None:
        """The gradient of log-decays: slopes summed from the own token on, and what the whole chunk passes."""
        f, operand = self.fades, self.whole.b.back.spec.grad_decay
        if operand is None:
            return
        after = sub(tile.reduce("sum", slope, f.at.rows), sub(tile.scan(slope, f.at.rows), slope))
        found = add(after, ends)
        found = found if own_slope is None else sub(found, own_slope)
        if f.keyed.own.writes.decay_kind == "key":
            self._wide(operand, found)
        else:
            self.narrow[operand.name] = tile.reduce("sum", found, f.at.dims)

    def _wide(self, operand: Operand | None, value: Node) -> None:
        """Store a gradient per key dim ``[c,d]``."""
        if operand is None:
            return
        f, w = self.fades, self.fades.keyed.own.writes
        tensor = self.whole.stored.setdefault(operand.name, f.keyed.own.tensor(operand, w.heads, w.rows))
        bounds: dict[int, tile.Value] = {1: tile.param(w.length)}
        if limit := column_limit(w.rows, power(w.rows)):
            bounds[3] = limit
        place = (f.chunk.batch, f.chunk.token(f.at.rows), f.chunk.head, f.at.dim)
        tile.store(tensor, *place, value=tile.cast(value, tensor.dtype), bounds=bounds)
