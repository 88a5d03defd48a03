"""Which file lowers which spec: the one table from kernels to schedule classes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sparsec.lower import (
    combine,
    combine_grad,
    evict,
    row_dot,
    row_lse,
    running,
    summarise,
    summarise_grad,
    summarise_max_grad,
    total,
)
from sparsec.lower.fenwick import schedules as ladder_class
from sparsec.lower.gathered import capture_grad, sink_grad
from sparsec.lower.gathered import grad_schedules as gathered_grad_class
from sparsec.lower.gathered import known as gathered_known
from sparsec.lower.gathered import schedules as gathered_class
from sparsec.lower.lowered import Lowered, Step
from sparsec.lower.pointwise import forward as pointwise
from sparsec.lower.pointwise import grad as pointwise_grad
from sparsec.lower.pointwise import space as pointwise_space
from sparsec.lower.route import balance, router, router_grad
from sparsec.lower.scan import batch_sum
from sparsec.lower.scan import schedules as scan_class
from sparsec.lower.scan.masses import backward as state_mixture_grad
from sparsec.lower.scan.masses import forward as state_mixture
from sparsec.lower.scan.mixture import gradient as mixture_grad
from sparsec.lower.scan.mixture import weights as mixture
from sparsec.lower.select import (
    dense_grad_keys,
    divergence,
    index_grad_keys,
    index_grad_q,
    list_sum,
    pooled_grad,
    set_selector,
)
from sparsec.lower.select import grad_keys as selector_grad_keys
from sparsec.lower.select import grad_q as selector_grad_q
from sparsec.lower.select import grad_space as selector_grad_space
from sparsec.lower.select import schedules as selector_class
from sparsec.lower.tiled import block_list
from sparsec.lower.tiled import forward as tiled
from sparsec.lower.tiled import grad_capture as tiled_grad_capture
from sparsec.lower.tiled import grad_kv as tiled_grad_kv
from sparsec.lower.tiled import grad_q as tiled_grad_q
from sparsec.lower.tiled import grad_space as tiled_grad_space
from sparsec.lower.tiled import space as tiled_space
from sparsec.plan.attention.capture_specs import GatheredGradCapture
from sparsec.plan.attention.sink_specs import ChunkSinkGrad
from sparsec.plan.grad_specs import (
    AnySpec,
    CombineGrad,
    GatheredGradKV,
    GatheredGradQ,
    RowDot,
    SelectorGradKeys,
    SelectorGradQ,
    SummariseGrad,
    TiledGradCapture,
    TiledGradKV,
    TiledGradQ,
    Total,
)
from sparsec.plan.maps.map_specs import Map, MapGrad
from sparsec.plan.maps.prefix_specs import Prefix, PrefixGrad
from sparsec.plan.maps.row_specs import RowLse
from sparsec.plan.selection.pooled_specs import PooledGrad
from sparsec.plan.selection.shared_specs import Members, SetSelector
from sparsec.plan.selection.signal_specs import DenseGradKeys, Divergence, IndexGradKeys, IndexGradQ, ListSum
from sparsec.plan.specs import (
    BlockList,
    Combine,
    GatheredAttention,
    Selector,
    Summarise,
    TiledAttention,
)
from sparsec.plan.states.evict_specs import Evict
from sparsec.plan.states.fenwick_specs import Ladder, LadderGrad
from sparsec.plan.states.mixture_specs import Mixture, MixtureGrad, StateMixture, StateMixtureGrad
from sparsec.plan.states.route_specs import Balance, Router, RouterGrad
from sparsec.plan.states.scan_specs import Scan, ScanGrad, StatesSum
from sparsec.tile.language import Program
from sparsec.tile.schedule import Schedule

Choices = dict[str, tuple[object, ...]]


@dataclass(frozen=True, slots=True)
class ScheduleClass:
    """How the kernels of one spec type are made: each function takes the spec and a schedule or a target's name.

    Attributes:
        known: schedules of the space that the tuner tries first, beside the default.
    """

    lower: Callable[[Any, Schedule], Lowered]
    default: Callable[[Any, str], Schedule]
    space: Callable[[Any, str], Choices]
    known: Callable[[Any, str], tuple[Schedule, ...]] = lambda spec, target: ()


def _summary_grad(spec: SummariseGrad, schedule: Schedule) -> Lowered:
    """Of means one program, of maxima two."""
    if spec.forward.fn == "max":
        return summarise_max_grad.lower(spec, schedule)
    return Lowered((Step(summarise_grad.lower(spec, schedule), schedule),))


def _single(lower: Callable[[Any, Schedule], Program]) -> Callable[[Any, Schedule], Lowered]:
    """A lowering to one program."""
    return lambda spec, schedule: Lowered((Step(lower(spec, schedule), schedule),))


def _rowwise(lower: Callable[[Any, Schedule], Program]) -> Callable[[Any, Schedule], Lowered]:
    """A lowering to one program whose rows know of no others."""
    return lambda spec, schedule: Lowered((Step(lower(spec, schedule), schedule, flat=True),))


def _fixed(spec: object, target: str) -> Choices:
    """Nothing to choose."""
    return {}


CLASSES: dict[type, ScheduleClass] = {
    TiledAttention: ScheduleClass(_single(tiled.lower), tiled_space.default, tiled_space.space, tiled_space.known),
    GatheredAttention: ScheduleClass(
        gathered_class.lower, gathered_class.default, gathered_class.space, gathered_known.forward
    ),
    Selector: ScheduleClass(selector_class.lower, selector_class.default, selector_class.space, selector_class.known),
    Summarise: ScheduleClass(_single(summarise.lower), summarise.default, summarise.space),
    Combine: ScheduleClass(_rowwise(combine.lower), combine.default, combine.space),
    BlockList: ScheduleClass(_single(block_list.lower), block_list.default, _fixed),
    RowDot: ScheduleClass(row_dot.lower, row_dot.default, row_dot.space),
    SetSelector: ScheduleClass(set_selector.lower, set_selector.default, set_selector.space),
    Members: ScheduleClass(_single(set_selector.lower_members), set_selector.default_members, _fixed),
    Evict: ScheduleClass(_single(evict.lower), evict.default, evict.space),
    ListSum: ScheduleClass(list_sum.lower, list_sum.default, list_sum.space),
    Divergence: ScheduleClass(_single(divergence.lower), divergence.default, divergence.space),
    IndexGradQ: ScheduleClass(_single(index_grad_q.lower), index_grad_q.default, divergence.space),
    DenseGradKeys: ScheduleClass(dense_grad_keys.lower, dense_grad_keys.default, dense_grad_keys.space),
    IndexGradKeys: ScheduleClass(index_grad_keys.lower, index_grad_keys.default, index_grad_keys.space),
    Prefix: ScheduleClass(running.lower, running.default, running.space),
    PrefixGrad: ScheduleClass(running.lower_grad, running.default, running.space),
    Map: ScheduleClass(_rowwise(pointwise.lower), pointwise_space.default, pointwise_space.space),
    MapGrad: ScheduleClass(pointwise_grad.lower, pointwise_space.default, pointwise_space.space_grad),
    Scan: ScheduleClass(scan_class.lower, scan_class.default, scan_class.space, scan_class.known),
    ScanGrad: ScheduleClass(
        scan_class.lower_grad, scan_class.default_grad, scan_class.space_grad, scan_class.known_grad
    ),
    Ladder: ScheduleClass(ladder_class.lower, ladder_class.default, ladder_class.space),
    LadderGrad: ScheduleClass(ladder_class.lower_grad, ladder_class.default, ladder_class.space),
    Router: ScheduleClass(_single(router.lower), router.default, router.space),
    Balance: ScheduleClass(balance.lower, balance.default, _fixed),
    RouterGrad: ScheduleClass(router_grad.lower, router_grad.default, router_grad.space),
    StatesSum: ScheduleClass(_single(batch_sum.lower), batch_sum.default, _fixed),
    Mixture: ScheduleClass(_rowwise(mixture.lower), mixture.default, mixture.space),
    StateMixture: ScheduleClass(state_mixture.lower, state_mixture.default, state_mixture.space),
    StateMixtureGrad: ScheduleClass(state_mixture_grad.lower, state_mixture.default, state_mixture.space),
    RowLse: ScheduleClass(_rowwise(row_lse.lower), pointwise_space.default, pointwise_space.space),
    MixtureGrad: ScheduleClass(_rowwise(mixture_grad.lower), mixture.default, mixture.space),
    TiledGradQ: ScheduleClass(_single(tiled_grad_q.lower), tiled_grad_space.default_q, tiled_grad_space.space),
    TiledGradKV: ScheduleClass(
        tiled_grad_kv.lower, tiled_grad_space.default_kv, tiled_grad_space.space, tiled_grad_space.known_kv
    ),
    TiledGradCapture: ScheduleClass(tiled_grad_capture.lower, tiled_grad_space.default_capture, tiled_grad_space.space),
    SummariseGrad: ScheduleClass(_summary_grad, summarise_grad.default, summarise_grad.space),
    SelectorGradQ: ScheduleClass(
        _single(selector_grad_q.lower), selector_grad_space.default_q, selector_grad_space.space_q
    ),
    SelectorGradKeys: ScheduleClass(
        selector_grad_keys.lower, selector_grad_space.default_keys, selector_grad_space.space_keys
    ),
    GatheredGradCapture: ScheduleClass(capture_grad.lower, sink_grad.default, sink_grad.space),
    ChunkSinkGrad: ScheduleClass(sink_grad.lower, sink_grad.default, sink_grad.space),
    PooledGrad: ScheduleClass(pooled_grad.lower, pooled_grad.default, pooled_grad.space),
    GatheredGradQ: ScheduleClass(
        gathered_grad_class.lower_q,
        gathered_grad_class.default_q,
        gathered_grad_class.space_q,
        gathered_known.grad_q,
    ),
    GatheredGradKV: ScheduleClass(
        gathered_grad_class.lower_kv, gathered_grad_class.default_kv, gathered_grad_class.space_kv
    ),
    CombineGrad: ScheduleClass(_rowwise(combine_grad.lower), combine_grad.default, combine_grad.space),
    Total: ScheduleClass(_rowwise(total.lower), total.default, total.space),
}


def lower_kernel(spec: AnySpec, schedule: Schedule) -> Lowered:
    """The programs of a kernel under a schedule; ScheduleError in one sentence where it is illegal."""
    return CLASSES[type(spec)].lower(spec, schedule)


def default(spec: AnySpec, target: str) -> Schedule:
    """A schedule that is good without tuning, for a target's name."""
    return CLASSES[type(spec)].default(spec, target)


def space(spec: AnySpec, target: str) -> Choices:
    """The tuner's choices, by the name of a schedule's field."""
    return CLASSES[type(spec)].space(spec, target)


def known(spec: AnySpec, target: str) -> tuple[Schedule, ...]:
    """Schedules of the space that are worth trying first."""
    return CLASSES[type(spec)].known(spec, target)
