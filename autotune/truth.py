"""What a kernel should write: the oracle on the kernel's own nodes, fed with the kernel's own input buffers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from sparsec.ir.node import Node
from sparsec.ir.op import Op
from sparsec.oracle.attends import compared
from sparsec.oracle.evaluate import Evaluation, by_row
from sparsec.oracle.values import Chosen, Memory, Output, Value, plain
from sparsec.plan.plan import Kernel


class Truth:
    """The exact results of one kernel on given buffers, on all query rows or on some.

    Attributes:
        rows: the query rows, or None for all of them.
    """

    def __init__(
        self, kernel: Kernel, buffers: Mapping[str, Tensor], dims: Mapping[str, int], rows: Tensor | None
    ) -> None:
        self.kernel, self.buffers, self.dims, self.rows = kernel, buffers, dims, rows
        self.device = buffers[kernel.writes[0]].device
        self._known = known(kernel, buffers)
        self._values = self._evaluate(self._known, [node for _, node, _ in kernel.results])

    def value(self, node: Node) -> Value:
        """A node that the kernel computes."""
        return self._values[node]

    def tensor(self, node: Node, part: str) -> Tensor:
        """One part of it as a tensor: "o", "lse", "k", "v" or "tensor"."""
        return part_of(self._values[node], part)

    def comparison(self, node: Node) -> tuple[Tensor, Tensor, Tensor]:
        """What a training signal compares, of all rows: scores, masses and which columns there are."""
        ev = self._evaluation(self._known)
        pieces = [compared(ev, node) for _ in ev.blocks(torch.arange(ev.row_count(node), device=self.device))]
        score, mass, there = (torch.cat(parts, dim=1) for parts in zip(*pieces, strict=True))
        return score, mass, there

    def after(self, node: Node, replaced: Mapping[Node, Value]) -> Value:
        """A node's value where others are what the kernel made them: weights of the members that it chose."""
        return self._evaluate({**self._known, **replaced}, [node])[node]

    def magnitude(self, scores: Node) -> Tensor:
        """The size of the terms that make up scores ``[B,R,HS,N]``, against which rounding is measured.

        A score that is a sum of products is as uncertain as the sum of their absolute values; a probability is so
        relative to itself, by as much as its logits are.
        """
        softmaxed = next((n for n in _chain(scores) if n.op is Op.REDUCE and n["pre"] == "softmax"), None)
        positive = {node: _absolute(value) for node, value in self._known.items()}
        if softmaxed is None:
            return self._tensor(positive, scores)
        logits = self._tensor(positive, softmaxed.src[0])
        return self._tensor(self._known, scores).abs() * (1 + logits.amax(dim=(-2, -1))[..., None, None])

    def _tensor(self, values: Mapping[Node, Value], node: Node) -> Tensor:
        found = self._evaluate(values, [node])[node]
        assert isinstance(found, Tensor)
        return found

    def at(self, x: Tensor, node: Node) -> Tensor:
        """The rows of a kernel's result that the truth is about."""
        return x if self.rows is None or not by_row(node) else x.index_select(1, self.rows)

    def _evaluate(self, values: Mapping[Node, Value], nodes: list[Node]) -> dict[Node, Value]:
        evaluation = self._evaluation(values)
        if self.rows is None:
            return {node: evaluation.whole(node) for node in nodes}
        in_rows = [node for node in nodes if by_row(node)]
        found = dict(zip(in_rows, evaluation.at(in_rows, self.rows), strict=True))
        return {node: found[node] if node in found else evaluation.whole(node) for node in nodes}

    def _evaluation(self, values: Mapping[Node, Value]) -> Evaluation:
        dims = {n: d for n, d in self.dims.items() if n != "q_offset"}
        return Evaluation(values, dims, "vector", self.dims["q_offset"], self.device)


def known(kernel: Kernel, buffers: Mapping[str, Tensor]) -> dict[Node, Value]:
    """The values of the nodes that a kernel reads, exactly as it reads them."""
    parts: dict[Node, dict[str, Tensor]] = {}
    for name, node, part in kernel.sources:
        parts.setdefault(node, {})[part] = buffers[name]
    values = {node: _value(node, found) for node, found in parts.items()}
    read = {node: value for node, value in values.items() if value is not None}
    return read | {node: _exact(buffers[str(node["name"])]) for node in _inputs(kernel, read)}


def _inputs(kernel: Kernel, read: Mapping[Node, Value]) -> Iterator[Node]:
    """Inputs that the kernel's nodes mention though it does not read them, as a summary of keys mentions the values."""
    seen: set[Node] = set()
    stack = [node for _, node, _ in kernel.results]
    while stack:
        node = stack.pop()
        if node in seen or node in read:
            continue
        seen.add(node)
        stack.extend(node.src)
        if node.op is Op.INPUT:
            yield node


def _value(node: Node, found: Mapping[str, Tensor]) -> Value | None:
    if "tensor" in found or "weights" in found:
        return _exact(found.get("tensor", found.get("weights")))
    if "k" in found:
        return Memory(_exact(found["k"]), _exact(found["v"]) if "v" in found else None)
    if "indices" in found:
        return Chosen(found["indices"].to(torch.int64), node.integer("size"))
    if "o" in found:
        return Output(_exact(found["o"]), _exact(found["lse"]) if "lse" in found else None)
    return None  # a block list says where to look, not what to compute


def _exact(x: Tensor | None) -> Tensor:
    assert x is not None
    return x.double() if x.is_floating_point() else x


def _absolute(value: Value) -> Value:
    if isinstance(value, Memory):
        return Memory(value.k.abs(), value.v)
    return value.abs() if isinstance(value, Tensor) and value.is_floating_point() else value


def _chain(scores: Node) -> Iterator[Node]:
    """Scores and what they are reduced from, down to the products."""
    yield scores
    while scores.op in (Op.REDUCE, Op.BIAS):
        scores = scores.src[0]
        yield scores


def part_of(value: Value, part: str) -> Tensor:
    """One tensor of a value."""
    if isinstance(value, Output):
        found = value.lse if part == "lse" else value.o
    elif isinstance(value, Memory):
        found = value.v if part == "v" else value.k
    else:
        found = plain(value)
    assert found is not None
    return found
