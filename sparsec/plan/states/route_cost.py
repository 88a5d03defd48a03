"""What routers cost: x read once per score, loss or adjoint, and arithmetic that never matters."""

from __future__ import annotations

from collections.abc import Callable

from sparsec.plan.cost_terms import B, Cost, item
from sparsec.plan.states.route_specs import Balance, Router, RouterGrad
from sparsec.scalar.expr import var


def _router(spec: Router) -> Cost:
    tokens = B * var(spec.length)
    made = 4 * (spec.parts + spec.slots * (2 if spec.weights is not None else 1))
    rows = spec.parts * spec.dim * item(spec.rows_dtype)
    return Cost(2 * tokens * spec.parts * spec.dim, tokens * (spec.dim * item(spec.dtype) + made) + rows)


def _balance(spec: Balance) -> Cost:
    tokens, router = B * var(spec.router.length), spec.router
    return Cost(2 * tokens * router.parts, 4 * tokens * (router.parts + router.slots))


def _router_grad(spec: RouterGrad) -> Cost:
    r, tokens = spec.router, B * var(spec.router.length)
    products = (spec.grad_x is not None) + (spec.grad_rows is not None)
    moved = 4 * (r.parts + 2 * r.slots) + r.dim * item(r.dtype) * products
    return Cost(2 * tokens * r.parts * r.dim * products, tokens * moved)


ROUTE_COSTS: dict[type, Callable[..., Cost]] = {Router: _router, Balance: _balance, RouterGrad: _router_grad}
