"""Where the base-two logits of a step lie between the program that makes them and those that rank by them."""

from __future__ import annotations

from sparsec.lower.select.frame import sharing
from sparsec.plan.specs import Selector
from sparsec.tile import build as tile
from sparsec.tile.language import Node, Tensor


def logits(spec: Selector, length: str) -> Tensor:
    """fp32 ``[B, TQ, N, H]`` where heads share a selection and are read together, else ``[B, TQ, H, N]``.

    ``length`` is the launch parameter with N.
    """
    last: tuple[str | int, ...] = (length, spec.heads) if sharing(spec) > 1 else (spec.heads, length)
    return Tensor(f"{spec.name}_raw", "float32", ("B", "TQ", *last))


def place(spec: Selector, batch: Node, token: Node, head: Node, number: Node) -> tuple[Node, ...]:
    """The indices of some heads' logits of some summaries."""
    return (batch, token, number, head) if sharing(spec) > 1 else (batch, token, head, number)


def bounds(spec: Selector, number: tile.Value, head: tile.Value | None = None) -> dict[int, tile.Value]:
    """What keeps an access inside: the number of summaries, and the first head that is not there."""
    numbers, heads = (2, 3) if sharing(spec) > 1 else (3, 2)
    return {numbers: number} if head is None else {numbers: number, heads: head}
