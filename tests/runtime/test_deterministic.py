"""Under ``torch.use_deterministic_algorithms`` no kernel adds atomically: another schedule, a refusal, or a warning."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from sparsec.lower.registry import lower_kernel
from sparsec.plan.grad_specs import GatheredGradQ, TiledGradCapture
from sparsec.plan.plan import Kernel
from sparsec.runtime.compiled import Compiled, compile
from sparsec.runtime.deterministic import OrderError, ordered, refuse_additions
from sparsec.runtime.order_price import OrderPrice, order_prices
from sparsec.runtime.records import Record, Records, bucket, record_key
from sparsec.testing.inputs.variants import small
from sparsec.testing.whole.case import WholeCase
from sparsec.tile.schedule import Schedule

DIMS = {"H": 4, "HKV": 2, "D": 32, "DV": 32}
LENGTHS = {**DIMS, "B": 1, "T": 96, "TQ": 96, "TK": 96, "q_offset": 0}
SUMS = Schedule("key_outer", rows=32, block=16, stages=2)


@pytest.fixture
def strict() -> Iterator[None]:
    """Torch told so, and afterwards as before."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def backward(compiled: Compiled, kind: type, *wrt: str) -> Kernel:
    """The kernel of a class in the backward half."""
    kernels = compiled.training.joint(DIMS, "float32", wrt).split.backward.kernels
    return next(kernel for kernel in kernels if isinstance(kernel.spec, kind))


def test_atomic_sums_give_way_to_the_default(strict: None) -> None:
    compiled = compile(small("nsa-selected"), "interpreter")
    kernel = backward(compiled, GatheredGradQ, "q")
    compiled.schedules[kernel.name] = SUMS
    assert not ordered(kernel.spec, SUMS)
    assert ordered(kernel.spec, compiled.schedule(kernel, DIMS))
    torch.use_deterministic_algorithms(False)
    assert compiled.schedule(kernel, DIMS) == SUMS


def test_a_call_made_before_is_worked_out_anew() -> None:
    compiled = compile(small("nsa-selected"), "interpreter")
    kernel = backward(compiled, GatheredGradQ, "q", "k", "v")
    compiled.schedules[kernel.name] = SUMS
    case, builds = WholeCase("nsa-selected", (35, 35, None)), []
    for wanted in (False, True, False):
        torch.use_deterministic_algorithms(wanted)
        try:
            inputs = {n: x.requires_grad_(n in ("q", "k", "v")) for n, x in case.inputs().items()}
            out = compiled(None, **inputs)
            assert isinstance(out, torch.Tensor)
            out.sum().backward()
        finally:
            torch.use_deterministic_algorithms(False)
        builds.append(compiled.builds)
    assert builds[0] < builds[1] == builds[2]


def prices(compiled: Compiled, *wrt: str) -> dict[str, OrderPrice]:
    """Of the backward half, by kernel."""
    plan = compiled.training.joint(LENGTHS, "float32", wrt).split.backward
    return {price.kernel: price for price in order_prices(compiled, plan, LENGTHS)}


def test_the_price_of_one_order_is_predicted_or_measured(tmp_path: Path) -> None:
    compiled = compile(small("nsa-selected"), "triton:sm_90", tmp_path)
    kernel = backward(compiled, GatheredGradQ, "q")
    untuned = prices(compiled, "q")[kernel.name]
    assert untuned.seconds == 0.0 and not untuned.atomic_runs and "runs in one order anyway" in str(untuned)
    compiled.schedules[kernel.name] = SUMS
    by_hand = prices(compiled, "q")[kernel.name]
    assert by_hand.atomic_runs and not by_hand.measured and by_hand.ordered_s is not None and by_hand.atomic_s > 0
    compiled.schedules = {}
    key = record_key(kernel.spec, compiled.target, bucket(compiled.lengths.longest(LENGTHS)))
    Records(tmp_path).write(key, Record(kernel.name, SUMS, 2e-3, 5e-3, 9, "tools"))
    tuned = prices(compiled, "q")[kernel.name]
    assert tuned.measured and tuned.seconds == pytest.approx(3e-3)
    assert str(tuned) == f"{kernel.name}: 5.000 ms in one order, 2.000 ms by atomic additions (measured)"
    assert prices(compiled, "k", "v") == {}


def test_a_price_that_is_a_refusal() -> None:
    (price,) = prices(compile(small("alibi-lse"), "interpreter"), "slopes").values()
    assert price.seconds is None and price.ordered_s is None and "is refused" in str(price)


def test_a_kernel_without_such_a_schedule_says_so(strict: None) -> None:
    compiled = compile(small("alibi-lse"), "interpreter")
    kernel = backward(compiled, TiledGradCapture, "slopes")
    with pytest.raises(OrderError, match="captured tensors are summed by atomic additions"):
        compiled.schedule(kernel, DIMS)
    torch.use_deterministic_algorithms(True, warn_only=True)
    with pytest.warns(UserWarning, match=kernel.name):
        assert not ordered(kernel.spec, compiled.schedule(kernel, DIMS))


def test_a_call_that_was_warned_of_is_refused_afterwards(strict: None) -> None:
    compiled, case = compile(small("alibi-lse"), "interpreter"), WholeCase("alibi-lse", (9, 9, None))

    def pull() -> None:
        inputs = {n: x.requires_grad_(x.is_floating_point()) for n, x in case.inputs().items()}
        out = compiled(None, **inputs)
        sum(o.sum() for o in (out if isinstance(out, tuple) else (out,))).backward()  # type: ignore[union-attr]

    torch.use_deterministic_algorithms(True, warn_only=True)
    with pytest.warns(UserWarning, match="atomic additions"):
        pull()
    torch.use_deterministic_algorithms(True)
    with pytest.raises(OrderError):
        pull()


def test_programs_of_a_forward_without_an_order_are_refused(strict: None) -> None:
    """Programs that share work with a forward are its own, whatever schedule is asked for later."""
    compiled = compile(small("nsa-selected"), "interpreter")
    plan = compiled.training.joint(DIMS, "float32", ("q",)).split.backward
    kernel = backward(compiled, GatheredGradQ, "q")
    schedules = {k.name: compiled.schedule(k, LENGTHS) for k in plan.kernels}
    refuse_additions(plan, schedules, {kernel.name: lower_kernel(kernel.spec, schedules[kernel.name])})
    with pytest.raises(OrderError, match="ask for them before the forward"):
        refuse_additions(plan, schedules, {kernel.name: lower_kernel(kernel.spec, SUMS)})
