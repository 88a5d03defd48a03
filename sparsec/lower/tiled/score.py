"""What a product of queries and keys becomes before the softmax: scale, soft cap and bias, and which pairs are seen."""

from __future__ import annotations

from collections.abc import Mapping

from sparsec.lower.scalars import both, emit, emit_scores, least, mul, sub
from sparsec.lower.softmax import LOG2E
from sparsec.plan.specs import Piece, TiledAttention
from sparsec.scalar.derivative import derivative
from sparsec.scalar.expr import Expr, var
from sparsec.scalar.fn import Fn
from sparsec.tile import build as tile
from sparsec.tile.language import Node, Tensor

SCORE = var("score", "float")

Env = Mapping[str, Node]
Tensors = Mapping[str, Tensor]


def pair_env(piece: Piece, env: Env, key: Node) -> dict[str, Node]:
    """What predicates and biases may name; where they read captured tensors, rows and keys past the last repeat it."""
    if not piece.captures:
        return {**env, "j": key}
    last = sub(tile.apply(Fn.ADD, tile.param("TQ"), tile.param("q_offset")), 1)
    return {**env, "i": least(env["i"], last), "j": least(key, sub(tile.param(piece.length), 1))}


def seen(piece: Piece, pair: Env, tensors: Tensors, inside: Node | None) -> Node | None:
    """The pairs that the mask shows, among those ``inside``; None where that is all of them."""
    return inside if piece.where is None else both(emit(piece.where, pair, tensors), inside)


def modified(spec: TiledAttention, piece: Piece, product: Node, pair: Env, tensors: Tensors) -> tuple[Node, float]:
    """Scores after soft cap and bias, and the factor that makes them base-two logits."""
    if spec.softcap is None and piece.bias is None and spec.scale > 0:
        return product, spec.scale * LOG2E
    score = _capped(spec, product)
    if piece.bias is not None:
        score = emit_scores(piece.bias, {**pair, "score": score}, tensors, product)
    return score, LOG2E


def slope(spec: TiledAttention, piece: Piece, product: Node, pair: Env, tensors: Tensors) -> Node | None:
    """The derivative of the natural logit by ``scale * product``; None where it is 1."""
    found: Node | None = None
    if spec.softcap is not None:
        share = mul(_capped(spec, product), 1.0 / spec.softcap)
        found = sub(tile.const(1.0), mul(share, share))
    if piece.bias is None:
        return found
    change = derivative(piece.bias, SCORE)
    if change.value == 1.0:
        return found
    factor = bias_change(spec, piece, change, product, pair, tensors)
    return factor if found is None else mul(found, factor)


def bias_change(spec: TiledAttention, piece: Piece, change: Expr, product: Node, pair: Env, tensors: Tensors) -> Node:
    """A derivative of the piece's bias at these pairs."""
    return emit(change, {**pair, "score": _capped(spec, product)}, tensors)


def _capped(spec: TiledAttention, product: Node) -> Node:
    score = mul(product, spec.scale)
    if spec.softcap is None:
        return score
    return mul(tile.apply(Fn.TANH, mul(score, 1.0 / spec.softcap)), spec.softcap)
