"""Schedules of decode steps: few queries and many keys, where a forward's tiles would leave most processors idle."""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import replace

from sparsec.lower.decode.in_place import in_place
from sparsec.lower.decode.schedules import FEW, schedule
from sparsec.lower.descriptors import without_roles
from sparsec.lower.gathered.chunks import sharing
from sparsec.lower.gathered.gpu import row_tile
from sparsec.lower.route import router
from sparsec.lower.scan.schedules import one_token_form, step_form, token_form
from sparsec.lower.scan.token import one_token
from sparsec.plan.grad_specs import AnySpec
from sparsec.plan.plan import Kernel
from sparsec.plan.specs import Combine, GatheredAttention
from sparsec.plan.states.mixture_specs import Mixture
from sparsec.plan.states.route_specs import Router
from sparsec.plan.states.scan_specs import Scan
from sparsec.runtime.target import Target
from sparsec.tile.schedule import Schedule


def for_steps(spec: AnySpec, found: Schedule, target: Target, batch: int, tokens: int) -> Schedule:
    """A forward's schedule as one for new tokens: with splits over the keys where they are few."""
    found = without_roles(found, spec)
    if isinstance(spec, Scan) and tokens == 1 and serves(spec, once := one_token_form(spec, target.name), tokens):
        return once
    if isinstance(spec, Router) and tokens <= FEW:
        return router.few(spec, found, target.name)
    if isinstance(spec, Scan):
        many = found if serves(spec, found, tokens) else token_form(spec, found)
        return step_form(spec, found, target.name) if tokens <= FEW else many
    return schedule(spec, found, target.processors, batch) if tokens <= FEW else by_tokens(spec, found)


def serves(spec: AnySpec, found: Schedule, tokens: int) -> bool:
    """Whether a schedule is one for so many tokens, which leaves parts of a bank that rest where they are."""
    if found.order != one_token.ORDER or not isinstance(spec, Scan):
        return True
    if tokens > 1 or not one_token.fits(spec):
        return False
    first, last = spec.writes.initial, spec.final
    kept = first is not None and last is not None and in_place(one_token.lower(spec, found).steps, first, last)
    return spec.writes.route is None or last is None or kept


def beside_scans(kernels: Sequence[Kernel], schedules: Sequence[Schedule], by_hand: Container[str]) -> list[Schedule]:
    """Schedules of a step in which what merges the answers of states has the grid of the programs that give them.

    Those of kernels named ``by_hand`` stay.
    """
    once = {n: s for k, s in zip(kernels, schedules, strict=True) if s.order == one_token.ORDER for n in k.writes}
    found = list(schedules)
    for place, (name, spec) in enumerate((k.name, k.spec) for k in kernels):
        if name in by_hand:
            continue
        if isinstance(spec, Combine) and spec.lse is None and all(name in once for name in spec.branches):
            found[place] = once[spec.branches[0]]
        if isinstance(spec, Mixture) and all(name in once for name in spec.z):
            found[place] = once[spec.z[0]]
    return found


def by_tokens(spec: AnySpec, found: Schedule) -> Schedule:
    """A forward's schedule, but for one with a program per chunk of keys, whose number a launch would have to know.

    Chunks of a state's tokens begin anew with every step: the recurrence takes their place.
    """
    if isinstance(spec, Scan):
        return token_form(spec, found)
    if isinstance(spec, GatheredAttention) and found.order == "key_outer":
        rows = row_tile(sharing(spec)) if found.split_dims else sharing(spec)
        return replace(found, order="query_outer", rows=rows, value_block=0)
    return found
