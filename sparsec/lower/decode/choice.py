"""A list of chosen chunks that its only reader makes itself, from the lists of programs that had a share each."""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass

from sparsec.lower.decode import portion, rank
from sparsec.lower.gathered import chunks
from sparsec.lower.gathered.chunks import Frame
from sparsec.lower.scalars import add
from sparsec.lower.select import chosen
from sparsec.lower.select.frame import sharing, without_constants
from sparsec.plan.plan import Kernel
from sparsec.plan.specs import GatheredAttention, Selector
from sparsec.tile import build as tile
from sparsec.tile.language import Node, Tensor
from sparsec.tile.schedule import Schedule

MOST = 128
"""Numbers of all lists together that are sorted again by every program that reads some of them."""


@dataclass(frozen=True, slots=True)
class Choice:
    """The selector of a list, and its programs per list."""

    selector: Selector
    splits: int

    @property
    def found(self) -> portion.Buffers:
        """What they leave."""
        return portion.buffers(without_constants(self.selector), self.splits)

    @property
    def tensor(self) -> Tensor:
        """The lists."""
        return self.found.best

    def numbers(self, f: Frame) -> tuple[Node, Node | None]:
        """The chunks of a token's list, and their weights where there are any."""
        builder, found = tile.Builder.current(), self.found
        one, slots = builder.axis("one", 1), builder.axis("k", found.slots)
        place = (f.batch, add(f.rows.token, tile.iota(one)), f.listed)
        ids, scores = rank.of_all(builder, self.selector, found, place, slots)
        weights = self.selector.weights and chosen.weights(self.selector.weights, ids, scores, slots, None)
        return tile.reduce("max", ids, one), tile.reduce("sum", weights, one) if weights else None


def choices(kernels: Sequence[tuple[Kernel, Schedule]], outputs: Set[str], order: str) -> dict[str, Choice]:
    """By kernel name, the choices that attention makes itself; ``order`` is the one of programs that share keys."""
    found = {}
    for kernel, schedule in kernels:
        spec = kernel.spec
        if schedule.order != order or not schedule.split_dims or not isinstance(spec, GatheredAttention):
            continue
        makers = [(k.spec, s) for k, s in kernels if spec.indices in k.writes]
        for selector, own in makers:
            if isinstance(selector, Selector) and own.order == order and _fits(selector, own.splits, spec):
                made = {selector.indices, selector.weights_out}
                if not outputs & made and not any(made & set(k.reads) for k, _ in kernels if k is not kernel):
                    found[kernel.name] = Choice(selector, own.splits)
    return found


def _fits(selector: Selector, splits: int, reader: GatheredAttention) -> bool:
    few = portion.buffers(without_constants(selector), splits)
    alike = selector.slots == reader.slots and selector.heads // sharing(selector) == chunks.lists(reader)
    alike = alike and reader.weights in (None, selector.weights_out)  # others are not those of this list
    return alike and few.lists * few.slots <= MOST and reader.counts is None and selector.hard_out is None
