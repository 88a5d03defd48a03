"""Holds what a kernel wrote to the truth: numbers by the oracle's error bounds, lists by gaps of 4 ulp and order."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import cast

import torch
from torch import Tensor

from sparsec.autotune.truth import Truth
from sparsec.ir.node import Node
from sparsec.ir.op import Op
from sparsec.lower.softmax import NOTHING
from sparsec.oracle.error import Quantity, check
from sparsec.oracle.form import FORMS
from sparsec.oracle.gap import same_selection, ulp
from sparsec.oracle.values import Chosen
from sparsec.oracle.weights import WeightFn
from sparsec.plan.grad_specs import CombineGrad, GatheredGradQ, RowDot, SelectorGradQ, TiledGradQ
from sparsec.plan.maps.map_specs import Map
from sparsec.plan.plan import Kernel
from sparsec.plan.selection.signal_specs import IndexGradQ, ListSum
from sparsec.plan.specs import Selector
from sparsec.plan.states.route_specs import Balance
from sparsec.scalar.evaluate import evaluate

ULPS = 4.0
VALUES = frozenset({"o", "lse", "k", "v", "tensor"})
"""Parts that are a node's value as it is."""
LISTS = frozenset({"indices", "weights"})
"""Parts that are judged member by member."""
WORST = 2**31 - 1
ALIKE: Quantity = "grad"
"""Two right kernels may each be off by the bounds of "o"; the wider bounds hold for their difference."""


def dtype_of(kernel: Kernel) -> str:
    """The dtype whose bounds a kernel is held to: that of what it reads, even where it writes fp32."""
    spec = getattr(kernel.spec, "forward", getattr(kernel.spec, "index", kernel.spec))
    return str(getattr(spec, "dtype", "float32"))


def kind_of(node: Node) -> Quantity:
    """Outputs and gradients of values are held to the bounds of "o", other gradients to those of "grad"."""
    if node.op is Op.MAP:
        return "grad" if any(kind_of(source) == "grad" for source in node.src) else "o"
    return "grad" if node.op is Op.VJP and node["of"] != "v" else "o"


def is_constant(kernel: Kernel) -> bool:
    """Whether a kernel fills a buffer with one number, which is no node's value."""
    return isinstance(kernel.spec, Map) and not kernel.spec.sources


def unjudged(kernel: Kernel) -> tuple[str, ...]:
    """The buffers that a kernel writes and nothing says what is right of; none for most kernels."""
    if is_constant(kernel):
        return ()
    meant = {name for name, _, part in kernel.results if part in VALUES or part in LISTS or part in INNER}
    return tuple(name for name in kernel.writes if name not in meant)


def _wrong_constant(kernel: Kernel, written: Mapping[str, Tensor]) -> str | None:
    assert isinstance(kernel.spec, Map)
    right, actual = float(evaluate(kernel.spec.fn, {})), written[kernel.spec.out]
    return None if bool((actual == right).all()) else f"{kernel.spec.out} is not {right:g} everywhere"


def wrong(truth: Truth, written: Mapping[str, Tensor]) -> str | None:
    """What is wrong with a kernel's results, in a sentence; None if nothing is."""
    lists: dict[Node, Chosen] = {}
    if is_constant(truth.kernel):
        return _wrong_constant(truth.kernel, written)
    if unknown := unjudged(truth.kernel):
        return f"{', '.join(unknown)}: nothing says what is right"
    for name, node, part in truth.kernel.results:
        if part == "indices":
            sentence = wrong_list(truth, node, truth.at(written[name], node))
            lists[node] = Chosen(written[name].to(torch.int64), node.integer("size"))
        elif part == "weights":
            sentence = _wrong_weights(truth, node, truth.at(written[name], node), lists)
        elif part in VALUES:
            actual, right = truth.at(written[name], node), truth.tensor(node, part)
            found = check(actual, right, dtype_of(truth.kernel), kind_of(node))
            sentence = None if found else found.sentence
        else:
            right, actual = INNER[part](truth, node), written[name]
            actual = actual if actual.shape == right.shape else truth.at(actual, node)
            found = check(actual, right, dtype_of(truth.kernel), "grad")
            sentence = None if found else found.sentence
        if sentence is not None:
            return f"{name} is {sentence}"
    return None


def _delta(truth: Truth, node: Node) -> Tensor:
    """What a rowdot writes, from the buffers that it reads; beside a merge, of the branch's gradient."""
    spec = truth.kernel.spec
    if isinstance(spec, CombineGrad):
        nodes = {name: other for name, other, _ in truth.kernel.results}
        number = next(k for k, name in enumerate(spec.deltas) if name is not None and nodes[name] is node)
        branch = truth.at(truth.buffers[spec.forward.branches[number]], node)
        return (branch.double() * truth.tensor(nodes[str(spec.branch_grads[number])], "tensor")).sum(-1)
    if isinstance(spec, GatheredGradQ | TiledGradQ):
        return (truth.buffers[spec.forward.out].double() * truth.buffers[spec.grad].double()).sum(-1)
    assert isinstance(spec, RowDot)
    found = (truth.buffers[spec.out].double() * truth.buffers[spec.grad].double()).sum(-1)
    return found if spec.lse_grad is None else found - truth.buffers[spec.lse_grad].double()


def _sink_grad(truth: Truth, node: Node) -> Tensor:
    """Minus the share of each sink in the rows' weights times what those rows hand back, over all rows."""
    spec = truth.kernel.spec
    assert isinstance(spec, RowDot) and spec.sink is not None and spec.lse is not None
    lse = truth.buffers[spec.lse].double()
    share = torch.where(lse > NOTHING, torch.exp(truth.buffers[spec.sink].double() - lse), 0.0)
    return -(share * _delta(truth, node)).sum((0, 1))


def _chosen_scores(truth: Truth, node: Node) -> Tensor:
    """The gradients of the scores of chosen units: those of all scores, at the kernel's lists."""
    spec = truth.kernel.spec
    assert isinstance(spec, SelectorGradQ | IndexGradQ)
    ids = truth.buffers[(spec.forward if isinstance(spec, SelectorGradQ) else spec.index).indices].long()
    return at_columns(truth.tensor(node, "tensor"), ids, spec.columns if isinstance(spec, IndexGradQ) else 1)


def _forward_scores(truth: Truth, node: Node) -> Tensor:
    """The scores of chosen units, 0 where a list holds nothing."""
    spec = truth.kernel.spec
    assert isinstance(spec, Selector)
    return at_columns(truth.tensor(node.src[0], "tensor"), truth.buffers[spec.indices].long(), 1)


def at_columns(x: Tensor, ids: Tensor, columns: int, other: float = 0.0) -> Tensor:
    """Numbers ``[B,TQ,HS,N]`` at the columns of lists ``[B,TQ,HS,K]`` -> ``[B,TQ,HS,K * columns]``."""
    key = ids[..., None] * columns + torch.arange(columns, device=ids.device)
    key = torch.where(ids[..., None] < 0, -1, key).flatten(-2)
    inside = (key >= 0) & (key < x.shape[-1])
    return torch.where(inside, x.gather(-1, torch.where(inside, key, 0)), other)


def _mass(truth: Truth, node: Node) -> Tensor:
    """The attention that each column of a list got; -1 for columns that are not there."""
    spec = truth.kernel.spec
    assert isinstance(spec, ListSum)
    mass, there = truth.comparison(node)[1:]
    ids = truth.buffers[spec.forward.indices].long()
    return at_columns(torch.where(there, mass, -1.0), ids, spec.columns, -1.0)


def _total(truth: Truth, node: Node) -> Tensor:
    return truth.comparison(node)[1].sum(-1)


def _index_lse(truth: Truth, node: Node) -> Tensor:
    """The log-sum-exp of the scores that are there; 0 where none is."""
    score, _, there = truth.comparison(node)
    found = torch.where(there, score, -torch.inf).logsumexp(-1)
    return torch.where(there.any(-1), found, 0.0)


def _soft(truth: Truth, node: Node) -> Tensor:
    """The weights of a straight-through choice, which are the slope of its ones."""
    spec = truth.kernel.spec
    assert isinstance(spec, Selector)
    score = truth.after(node.src[0], {})
    assert isinstance(score, Tensor)
    return FORMS["vector"].weigh(score, truth.buffers[spec.indices].long(), cast(WeightFn, node.word("fn")))


def _shares(truth: Truth, node: Node) -> Tensor:
    """The softmax of a router's scores over all parts."""
    return truth.tensor(node, "tensor").softmax(-1)


def _slopes(truth: Truth, node: Node) -> Tensor:
    """The gradient of every share of a part: coefficient · P/K · how often the part is chosen, over all tokens."""
    spec = truth.kernel.spec
    assert isinstance(spec, Balance)
    ids = truth.buffers[spec.router.ids].long().flatten(0, -2)
    chosen = (ids[..., None] == torch.arange(spec.router.parts, device=ids.device)).any(-2).double()
    return spec.factor * chosen.sum(0) / max(len(ids), 1) ** 2


INNER: dict[str, Callable[[Truth, Node], Tensor]] = {
    "delta": _delta,
    "sink_grad": _sink_grad,
    "chosen": _chosen_scores,
    "scores": _forward_scores,
    "mass": _mass,
    "total": _total,
    "index_lse": _index_lse,
    "shares": _shares,
    "slopes": _slopes,
    "soft": _soft,
}
"""What kernels write that is no node's value."""


def wrong_list(truth: Truth, node: Node, ids: Tensor) -> str | None:
    """What is wrong with lists of units ``[B,R,HS,K]``: members, range, duplicates or order."""
    chosen = truth.value(node)
    assert isinstance(chosen, Chosen) and chosen.score is not None
    units = chosen.score.shape[-1]
    if bool(((ids < -1) | (ids >= units)).any()):
        return f"out of range: {int(ids.max())} or {int(ids.min())} where there are {units} units"
    magnitude = truth.magnitude(node.src[0])
    same = same_selection(ids, chosen, magnitude=magnitude)
    if not bool(same.all()):
        count = int((~same).sum())
        at = tuple(int(i) for i in (~same).nonzero()[0])
        return f"not the oracle's choice in {count} of {same.numel()} lists beyond a gap of 4 ulp, first at {at}"
    order = str(node["order"])
    ordered = _by_score(ids, chosen, magnitude) if order == "score" else _by_age(ids, order)
    return None if ordered else f"out of order: lists go by {order}, then -1"


def _by_age(ids: Tensor, order: str) -> bool:
    rank = torch.where(ids < 0, WORST, ids if order == "oldest" else -ids)
    return bool((rank.diff(dim=-1) >= 0).all())


def _by_score(ids: Tensor, chosen: Chosen, magnitude: Tensor) -> bool:
    """Whether forced members come first, and scores never rise by more than a gap of 4 ulp."""
    assert chosen.score is not None and chosen.forced is not None
    at = ids.clamp(min=0).long()
    score, forced, size = (x.gather(-1, at) for x in (chosen.score, chosen.forced, magnitude.abs()))
    group = torch.where(ids < 0, 2, 1 - forced.int()).diff(dim=-1)
    slack = ULPS * ulp(torch.maximum(size[..., 1:], size[..., :-1]))
    return bool(((group > 0) | ((group == 0) & ((ids[..., 1:] < 0) | (score.diff(dim=-1) <= slack)))).all())


def _wrong_weights(truth: Truth, node: Node, actual: Tensor, lists: Mapping[Node, Chosen]) -> str | None:
    """Weights of the members that the kernel itself chose, in its order."""
    selection = node.src[1]
    if selection in lists and truth.rows is None:
        own, exact = lists[selection], truth.value(selection)
        assert isinstance(exact, Chosen)
        replaced = {selection: Chosen(own.ids, own.size, exact.score, exact.eligible, exact.forced)}
    elif selection in lists and node["renormalise"]:
        replaced = {selection: lists[selection]}
    else:
        replaced = {}
    expected = truth.after(node, replaced)
    assert isinstance(expected, Tensor)
    found = check(actual, expected, dtype_of(truth.kernel), "grad")
    return None if found else found.sentence


def unlike(kernel: Kernel, written: Mapping[str, Tensor], admitted: Mapping[str, Tensor]) -> str | None:
    """Where numbers differ from those of a kernel that was admitted; lists are for ``differing_rows``.

    Weights are compared where the lists are the same.
    """
    same = [(written[n] == admitted[n]).all(-1, keepdim=True) for n, _, part in kernel.results if part == "indices"]
    for name, _, part in kernel.results:
        if part == "indices":
            continue
        actual, right = written[name], admitted[name]
        if part == "weights" and same:
            actual, right = (torch.where(same[0], x, 0.0) for x in (actual, right))
        found = check(actual, right, dtype_of(kernel), ALIKE)
        if not found:
            return f"{name} disagrees with an admitted kernel's, {found.sentence}"
    return None


def differing_rows(kernel: Kernel, written: Mapping[str, Tensor], admitted: Mapping[str, Tensor], most: int) -> Tensor:
    """Query rows whose lists are not those of an admitted kernel, the first ``most`` of them."""
    found = [written[name] != admitted[name] for name, _, part in kernel.results if part == "indices"]
    rows = torch.stack([f.flatten(2).any(-1).any(0) for f in found]).any(0) if found else torch.zeros(0)
    return rows.nonzero()[:most, 0]
