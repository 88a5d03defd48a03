"""What ``torch.use_deterministic_algorithms(True)`` costs each kernel that may add atomically."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from sparsec.lower.registry import default, known, lower_kernel, space
from sparsec.plan.plan import Kernel, Plan
from sparsec.runtime.deterministic import ordered
from sparsec.runtime.predict import predict
from sparsec.runtime.records import bucket, record_key
from sparsec.tile.schedule import Schedule, ScheduleError

if TYPE_CHECKING:
    from sparsec.runtime.compiled import Compiled


@dataclass(frozen=True, slots=True)
class OrderPrice:
    """A kernel with a schedule whose sums have one order, or none, and one whose programs add to the same memory.

    Attributes:
        atomic_s: seconds of the quickest known schedule that adds atomically.
        ordered_s: of the one that deterministic algorithms take; None where there is none, and the call is refused.
        measured: whether the tuner timed both in turn on this machine; else both are predicted from bytes and work.
        atomic_runs: whether the atomic one runs where torch does not ask for an order; else there is nothing to pay.
    """

    kernel: str
    atomic_s: float
    ordered_s: float | None
    measured: bool
    atomic_runs: bool

    @property
    def seconds(self) -> float | None:
        """What the mode adds to a call; None where it refuses the call."""
        return None if self.ordered_s is None else self.ordered_s - self.atomic_s if self.atomic_runs else 0.0

    def __str__(self) -> str:
        atomic, how = f"{self.atomic_s * 1e3:.3f} ms by atomic additions", "measured" if self.measured else "predicted"
        if self.ordered_s is None:
            return f"{self.kernel}: {atomic} ({how}); no schedule has one order, so the call is refused"
        one = f"{self.ordered_s * 1e3:.3f} ms in one order"
        ending = "" if self.atomic_runs else "; it runs in one order anyway"
        return f"{self.kernel}: {one}, {atomic} ({how}){ending}"


def order_prices(compiled: Compiled, plan: Plan, dims: Mapping[str, int]) -> tuple[OrderPrice, ...]:
    """Of each kernel of a plan that has a choice, or that has no order at all."""
    found = (_price(compiled, kernel, dims) for kernel in plan.kernels)
    return tuple(price for price in found if price is not None)


def _price(compiled: Compiled, kernel: Kernel, dims: Mapping[str, int]) -> OrderPrice | None:
    target, spec = compiled.target, kernel.spec
    runs, plain = compiled.preferred(kernel, dims), default(spec, target.name)
    if not ordered(spec, runs):
        key = record_key(spec, target, bucket(compiled.lengths.longest(dims)))
        record = compiled.records.read(key, lambda: plain)
        if record is not None and record.schedule == runs and ordered(spec, plain):
            return OrderPrice(kernel.name, record.time_s, record.default_s, True, True)
        one = _seconds(compiled, kernel, plain, dims) if ordered(spec, plain) else None
        return OrderPrice(kernel.name, _seconds(compiled, kernel, runs, dims), one, False, True)
    atomic = [_seconds(compiled, kernel, s, dims) for s in _atomic(kernel, runs, target.name)]
    if not atomic:
        return None
    return OrderPrice(kernel.name, min(atomic), _seconds(compiled, kernel, runs, dims), False, False)


def _atomic(kernel: Kernel, runs: Schedule, target: str) -> Iterator[Schedule]:
    """Legal schedules that add atomically: those known to be good, and the present one in other loop orders."""
    orders = space(kernel.spec, target).get("order", ())
    for schedule in (*known(kernel.spec, target), *(replace(runs, order=str(order)) for order in orders)):
        try:
            if not ordered(kernel.spec, schedule):
                yield schedule
        except ScheduleError:
            continue


def _seconds(compiled: Compiled, kernel: Kernel, schedule: Schedule, dims: Mapping[str, int]) -> float:
    return predict(kernel, lower_kernel(kernel.spec, schedule), schedule, compiled.target, dims).seconds
