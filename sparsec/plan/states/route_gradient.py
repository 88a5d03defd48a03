"""The adjoint of a router: through the weights of what it chose, and through its loss."""

from __future__ import annotations

from sparsec.ir.node import Node
from sparsec.ir.op import Op
from sparsec.plan.adjoint import terms
from sparsec.plan.planner import Planner
from sparsec.plan.row_dot import Source
from sparsec.plan.states.route import balance, listed
from sparsec.plan.states.route_specs import Balance, Router, RouterGrad


def route_gradient(planner: Planner, vjp: Node, source: Source) -> None:
    """Plan the kernels of all gradients of a router's score that are asked for."""
    score, below = vjp.src[0], vjp.positional[1]
    parts = {term.src[0].op: term for term in terms(below) if term.op is Op.VJP}
    if set(parts) - {Op.WEIGHTS, Op.AUX} or len(parts) != len(terms(below)):
        raise planner.refuse(vjp, "a router has a gradient through the weights of one choice, and its load balance")
    chosen = next(term.src[0].src[1] for term in parts.values())
    listed(planner, chosen)
    router = planner.specs.get(chosen)
    assert isinstance(router, Router)
    weighed, signal = parts.get(Op.WEIGHTS), parts.get(Op.AUX)
    grad = source(weighed.positional[1], "float32") if weighed is not None else None
    loss = None
    if signal is not None:
        balance(planner, signal.src[0])
        found = planner.specs[signal.src[0]]
        assert isinstance(found, Balance)
        loss = found
    grad_loss = source(signal.positional[1], "float32") if signal is not None else None
    wanted = {v.word("of"): v for v in planner.vjps if v.src[0] is score}
    made = {of: _made(planner, v) for of, v in wanted.items()}
    x, rows = made.get("q"), made.get("keys")
    dtypes = [planner.buffers[name].dtype if name is not None else "float32" for name in (x, rows)]
    spec = RouterGrad(f"grad_{x or rows}", router, grad, loss, grad_loss, x, rows, *dtypes)
    given = (router.shares, router.ids, router.x, router.rows, grad, grad_loss, loss.slopes if loss else None)
    covers = [*wanted.values(), *parts.values()]
    planner.follow(chosen, spec, [name for name in given if name], [n for n in (x, rows) if n], covers)


def _made(planner: Planner, vjp: Node) -> str:
    return planner.temporary(vjp, "tensor", vjp.shape, planner.precision(vjp, planner.sizes.dtype_of(vjp)))
