"""The rule of adjoints: what is wrong with a ``vjp`` node, or None."""

from __future__ import annotations

from sparsec.ir.adjoint import cotangent_shape, key_of, targets
from sparsec.ir.node import Node, Shape
from sparsec.ir.rules_select import Problem, dims
from sparsec.ir.scores import clash, has_lse
from sparsec.ir.suggest import did_you_mean


def vjp(node: Node) -> Problem | None:
    """The primal has an adjoint, for what is asked; cotangents have the shapes of what they belong to."""
    primal, cotangent = node.positional
    known = targets(primal)
    if not known:
        rule = "an adjoint of an adjoint has no meaning" if primal.op is node.op else "this op has no adjoint"
        return Problem(primal.op.value, rule, "differentiate what is made of attends, scores, merges and maps")
    of, capture = key_of(node)
    if (of, capture) not in known:
        return _unknown(primal, of, capture)
    if wrong := _shaped(cotangent, cotangent_shape(primal, of)):
        return wrong
    lse_grad = node.operands.get("lse_grad")
    if lse_grad is None:
        return None
    if not has_lse(primal):
        return Problem(f"lse_grad of {primal.op.value}", "only a joint softmax has a log-sum-exp", "leave it out")
    return _shaped(lse_grad, primal.shape[:3])


def _unknown(primal: Node, of: str, capture: str | None) -> Problem:
    known = targets(primal)
    if of == "capture" or (of, None) in known:
        names = [str(name) for word, name in known if word == "capture"]
        rule = "capture names the captured float tensor, with of = capture alone"
        return Problem(f"of = {of}, capture = {capture or 'none'}", rule, did_you_mean(capture or "", names))
    words = dict.fromkeys(word for word, _ in known)
    rule = f"{primal.op.value} has gradients of {', '.join(words)} here"
    return Problem(f"of = {of}", rule, did_you_mean(of, words))


def _shaped(cotangent: Node, shape: Shape) -> Problem | None:
    fits = len(cotangent.shape) == len(shape) and cotangent.dtype != "int32"
    if fits and not any(clash(a, b) for a, b in zip(cotangent.shape, shape, strict=True)):
        return None
    wanted = f"[{', '.join(str(dim) for dim in shape)}]"
    return Problem(dims(cotangent), "a cotangent is shaped like what it belongs to", f"give floats {wanted}")
