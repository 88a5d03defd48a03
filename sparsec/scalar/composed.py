"""Functions made of others, one expression each: what gates, steps and activations are written with."""

from __future__ import annotations

from collections.abc import Callable

from sparsec.scalar.expr import Expr, ExprLike, lift
from sparsec.scalar.functions import absolute, exp, log, maximum, minimum, sigmoid, where


def log1p(x: ExprLike) -> Expr:
    """log(1 + x), exact where x is small: what 1 + x lost in rounding is put back by x / ((1 + x) − 1)."""
    x = lift(x)
    total = 1.0 + x
    near = log(total) * (x / (total - 1.0))
    return where(total == 1.0, x, where(absolute(x) < 0.5, near, log(total)))


def log1p_exp(x: ExprLike) -> Expr:
    """log(1 + exp(−|x|)), by its series where the exponential is small beside 1."""
    e = exp(-absolute(x))
    series = e * (1.0 - e * (0.5 - e * (0.3333333333333333 - 0.25 * e)))
    return where(e < 0.01, series, log(1.0 + e))


def softplus(x: ExprLike) -> Expr:
    """log(1 + exp(x)), for x of any size."""
    return maximum(x, 0.0) + log1p_exp(x)


def log_sigmoid(x: ExprLike) -> Expr:
    """log σ(x), for x of any size."""
    return minimum(x, 0.0) - log1p_exp(x)


def silu(x: ExprLike) -> Expr:
    """x σ(x)."""
    return lift(x) * sigmoid(x)


def relu(x: ExprLike) -> Expr:
    """x where it is positive, else 0; the slope at 0 is 0, as in torch."""
    x = lift(x)
    return where(x <= 0.0, 0.0, x)


COMPOSED: dict[str, Callable[[ExprLike], Expr]] = {
    "log1p": log1p,
    "softplus": softplus,
    "log_sigmoid": log_sigmoid,
    "logsigmoid": log_sigmoid,
    "silu": silu,
    "relu": relu,
}
"""By name, torch's spelling included."""
