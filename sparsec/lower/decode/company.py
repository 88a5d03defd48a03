"""What kernels of one step leave for each other: logits for a selector, parts of a branch for what merges branches."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from sparsec.lower.decode import dense, lists
from sparsec.lower.decode.choice import Choice, choices
from sparsec.lower.decode.combine import InParts
from sparsec.lower.decode.pairs import partners
from sparsec.plan.grad_specs import AnySpec
from sparsec.plan.plan import Kernel
from sparsec.plan.specs import Combine, GatheredAttention, TiledAttention
from sparsec.tile.schedule import Schedule

SHARED = "shared_keys"
"""The loop order of programs that share a row's keys, ``Schedule.splits`` of them."""


@dataclass(frozen=True, slots=True)
class Company:
    """What one kernel has from others, or leaves for them.

    Attributes:
        partner: a kernel with the same logits, see ``pairs``.
        merged: whether its own launches merge its parts; else what merges branches does.
        parts: branches that it finds in parts.
        choice: the selector whose list it makes itself, which does not merge its own then.
    """

    partner: AnySpec | None = None
    merged: bool = True
    parts: Mapping[str, InParts] = field(default_factory=dict)
    choice: Choice | None = None


ALONE = Company()


def company(kernels: Sequence[tuple[Kernel, Schedule]], outputs: Iterable[str]) -> dict[str, Company]:
    """By kernel name, for kernels in launch order and the outputs of their plan."""
    pairs = partners([(k.spec, s.splits) for k, s in kernels if s.order == SHARED])
    found = {k.name: Company(pairs.get(k.name)) for k, _ in kernels}
    for merger in (k.spec for k, _ in kernels if isinstance(k.spec, Combine)):
        left = {k.name: part for k, s in kernels if (part := _part(k, s, merger, kernels, set(outputs))) is not None}
        found[merger.name] = Company(parts={p.out: p for p in left.values()})
        found |= {name: Company(pairs.get(name), merged=False) for name in left}
    made = choices(kernels, set(outputs), SHARED)
    for name, choice in made.items():
        found[name] = replace(found[name], choice=choice)
        found[choice.selector.name] = replace(found[choice.selector.name], merged=False)
    return found


def _part(
    kernel: Kernel, schedule: Schedule, merger: Combine, kernels: Sequence[tuple[Kernel, Schedule]], outputs: set[str]
) -> InParts | None:
    """A branch in parts; None where another kernel or the caller reads what the kernel writes."""
    spec = kernel.spec
    if schedule.order != SHARED or not isinstance(spec, TiledAttention | GatheredAttention):
        return None
    readers = {k.name for k, _ in kernels if set(kernel.writes) & set(k.reads)}
    if readers != {merger.name} or spec.out not in merger.branches or outputs & set(kernel.writes):
        return None
    rows = dense.as_rows(spec) if isinstance(spec, TiledAttention) else lists.merged(spec)
    return InParts(rows, schedule.splits)
