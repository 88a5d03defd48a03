"""The rules of adjoints and training signals: what is wrong with a ``vjp`` or ``aux`` node, or None."""

from __future__ import annotations

from collections.abc import Sequence

from sparsec.ir.adjoint import cotangent_shape, key_of, targets
from sparsec.ir.node import Node, Shape
from sparsec.ir.op import Op
from sparsec.ir.rules_select import Problem, dims
from sparsec.ir.scores import clash, has_lse, is_list, unit_size
from sparsec.ir.suggest import did_you_mean


def vjp(node: Node) -> Problem | None:
    """The primal has an adjoint, for what is asked; cotangents have the shapes of what they belong to."""
    primal, *cotangents = node.positional
    known = targets(primal)
    if not known:
        rule = "an adjoint of an adjoint has no meaning" if primal.op is node.op else "this op has no adjoint"
        return Problem(primal.op.value, rule, "differentiate what is made of attends, scores, merges and maps")
    of, capture = key_of(node)
    if (of, capture) not in known:
        return _unknown(primal, of, capture)
    if wrong := _cotangents(primal, cotangents, of):
        return wrong
    lse_grad = node.operands.get("lse_grad")
    if lse_grad is None:
        return None
    if not has_lse(primal):
        return Problem(f"lse_grad of {primal.op.value}", "only a joint softmax has a log-sum-exp", "leave it out")
    return _shaped(lse_grad, primal.shape[:3])


def _cotangents(primal: Node, cotangents: Sequence[Node], of: str) -> Problem | None:
    """One of the result's shape; of a write also those of its readers, and as many as there are."""
    if len(cotangents) > 1 and primal.op is not Op.WRITE:
        return Problem(f"{len(cotangents)} cotangents", "only a written state has several", "give their sum")
    for cotangent in cotangents:
        if cotangent.kind != "cotangent":
            if wrong := _shaped(cotangent, cotangent_shape(primal, of)):
                return wrong
        elif primal not in cotangent.src[0].positional:
            said = f"a cotangent of {cotangent.src[0].op.value}"
            return Problem(
                said, "a written state takes what its own readers hand back", "vjp(recall, grad) {of = state0}"
            )
    return None


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


def aux(node: Node) -> Problem | None:
    """A signal has what it compares with."""
    needs = "selection" if node["fn"] == "balance" else "target"
    there = len(node.positional) == 2 if needs == "selection" else "target" in node.operands
    if not there:
        return Problem(f"fn = {node['fn']}", f"it needs a {needs}", f"add the {needs}")
    return _kl(node) if node["fn"] == "kl" else None


def _kl(node: Node) -> Problem | None:
    """Scores of keys against the attention that a joint softmax gives them."""
    scores, target = node.src[0], node.operands["target"]
    if target.op is not Op.ATTEND or not has_lse(target):
        rule = "the target of kl is an attend with one softmax, whose attention the scores should have"
        return Problem(f"target is {target.op.value}", rule, "target = the attend that reads the selection")
    columns, row = unit_size(scores), target.src[1]
    if len(node.positional) == 1:
        return _dense(columns, row, target)
    selection = node.src[1]
    if not is_list(selection):
        return Problem(selection.op.value, "the chosen of kl are a list", "leave the mask out: the target has it")
    size = selection.integer("size")
    if columns not in (None, 1, size):
        value = f"columns of {columns} tokens, chosen units of {size}"
        return Problem(value, "a column is a token or a chosen unit", "score tokens, or the units that are chosen")
    if clash(scores.shape[2], selection.shape[2]):
        value = f"scores of {scores.shape[2]} heads, a selection of {selection.shape[2]}"
        return Problem(value, "both have one scope", "use the scores that were selected from")
    return None


def _dense(columns: int | None, memory: Node, target: Node) -> Problem | None:
    """Without a list the columns are the keys of a dense attend."""
    if memory.op is not Op.TOKENS or columns not in (None, 1) or any(is_list(s) for s in target.positional[2:]):
        rule = "without a selection kl compares all tokens that the target's masks show"
        return Problem(f"columns of {columns} tokens", rule, "score single tokens, target = a dense attend")
    return None
