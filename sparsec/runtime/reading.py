"""Formulas for people: sums factored by sympy, grids and key ranges as text."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from sparsec.plan.grad_specs import AnySpec
from sparsec.plan.specs import BlockList, GatheredAttention, Piece, Selector, TiledAttention
from sparsec.scalar.bounds import Bounded, key_ranges
from sparsec.scalar.evaluate import evaluate
from sparsec.scalar.expr import Expr, call, constant, var
from sparsec.scalar.fn import Fn
from sparsec.scalar.prove import is_open
from sparsec.scalar.walk import substitute
from sparsec.tile.language import Node, Program, TileOp


def factored(formula: Expr) -> str:
    """A formula as sympy writes it once common factors are taken out."""
    import sympy

    from sparsec.scalar.symbolic import to_sympy

    return str(sympy.factor_terms(sympy.factor(sympy.nsimplify(to_sympy(formula), rational=True))))


def named(formula: Expr, params: Iterable[tuple[str, Expr]]) -> Expr:
    """A formula over launch parameters as one over the declaration's own dims."""
    return substitute(formula, {name: value for name, value in params if value is not var(name)})


def grid(program: Program, params: Sequence[tuple[str, Expr]], sizes: Mapping[str, int]) -> str:
    """The number of programs, dimension by dimension, and at these sizes: ``(TQ + 63) // 64 x 8 x B = 4 x 8 x 1``."""
    extents = [_expr(g) for g in program.grid]
    said = " x ".join(_factor(named(e, params)) for e in extents)
    return f"{said} = {' x '.join(str(int(evaluate(e, sizes))) for e in extents)}"


def _factor(extent: Expr) -> str:
    """One extent, in parentheses where a product of several could be misread."""
    text = str(extent)
    return f"({text})" if " * " in text else text


def scalar_text(node: Node, params: Mapping[str, str]) -> str:
    """A scalar of launch parameters as Python, each parameter written as ``params`` says."""
    if node.op is TileOp.PARAM:
        text = params[str(node.attrs[0])]
        return text if text.isidentifier() or text.isdigit() else f"({text})"
    if node.op is TileOp.CONST:
        return str(int(str(node.attrs[0])))
    fn = node.attrs[0]
    assert node.op is TileOp.MAP and isinstance(fn, Fn), node
    left, right = (scalar_text(a, params) for a in node.args)
    if fn in (Fn.MINIMUM, Fn.MAXIMUM):
        return f"{'min' if fn is Fn.MINIMUM else 'max'}({left}, {right})"
    signs = {Fn.ADD: "+", Fn.SUB: "-", Fn.MUL: "*", Fn.TRUNCDIV: "//", Fn.TRUNCMOD: "%"}
    return f"({left} {signs[fn]} {right})"


def _expr(node: Node) -> Expr:
    """A scalar of launch parameters, none of them negative, so that division rounds down either way."""
    if node.op is TileOp.CONST:
        return constant(int(str(node.attrs[0])))
    if node.op is TileOp.PARAM:
        return var(str(node.attrs[0]))
    fn = node.attrs[0]
    assert node.op is TileOp.MAP and isinstance(fn, Fn), node
    rounded = {Fn.TRUNCDIV: Fn.FLOORDIV, Fn.TRUNCMOD: Fn.MOD}.get(fn, fn)
    return call(rounded, *(_expr(a) for a in node.args))


def ranges(spec: AnySpec) -> tuple[str, ...]:
    """What a tile of queries at positions i_lo … i_hi reads, in words."""
    if isinstance(spec, TiledAttention):
        return tuple(f"{p.k}: {_piece(p)}" for p in spec.pieces)
    if isinstance(spec, GatheredAttention):
        return (f"{spec.k}: {spec.slots} chunks of {spec.chunk} per token from {spec.indices}",)
    if isinstance(spec, Selector):
        over, above = spec.eligible, spec.parents
        if above is not None:
            return (f"{spec.keys}: {above.fanout} children of each of {above.slots} units per query from {above.ids}",)
        return (f"{spec.keys}: candidates {_bounds(over, 'c') if over is not None else '[0, NB)'}",)
    if isinstance(spec, BlockList) and spec.given is not None:
        return (f"{spec.given}: {spec.slots} blocks of {spec.block_k} keys per {spec.block_q} queries",)
    if isinstance(spec, BlockList):
        return (f"every pair of {spec.block_q} queries and {spec.block_k} keys, once",)
    return ()


def _piece(piece: Piece) -> str:
    if piece.listed is not None:
        return f"the tiles listed in {piece.listed.ids}"
    if piece.where is None:
        return f"[0, {piece.length})"
    return _bounds(piece.where, "j", piece.length)


def _bounds(where: Expr, index: str, length: str = "NB") -> str:
    found = key_ranges(substitute(where, {"c": var("j")}) if index == "c" else where)
    if not isinstance(found, Bounded):
        return f"[0, {length}): {found.reason}"
    spans = (f"[{r.lo}, {length if is_open(r.hi) else f'minimum({r.hi}, {length})'})" for r in found.ranges)
    return " and ".join(spans) or "nothing"
