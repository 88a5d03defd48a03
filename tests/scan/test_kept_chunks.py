"""What a forward keeps of its chunks for the backward: the same gradients to the last bit from fewer programs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import sparsec
from sparsec.frontends.text import parse
from sparsec.lower.registry import default
from sparsec.plan.grad_specs import GatheredGradQ
from sparsec.plan.states.fenwick_specs import Ladder, LadderGrad
from sparsec.plan.states.scan_specs import Scan, ScanGrad
from sparsec.runtime.across import programs, whole
from sparsec.runtime.compiled import Compiled
from sparsec.runtime.deterministic import adds
from sparsec.runtime.joint import Joint
from sparsec.runtime.peak import training_peak
from sparsec.tile.schedule import Schedule

SIZES: dict[str, Any] = {"B": 1, "T": 70, "H": 2, "HKV": 2, "D": 16, "DV": 16}


def called(preset: str, knobs: dict[str, Any], keep: bool) -> tuple[Compiled, dict[str, Tensor], Joint, list[Tensor]]:
    """A variant whose scans go chunk by chunk, its halves, its output and all gradients."""
    variant = sparsec.preset(preset, **knobs)
    routed: dict[str, Any] = {"DX": 4} if "sse" in preset else {}
    x = sparsec.inputs(variant, dtype="bfloat16", **SIZES, **routed)
    made = sparsec.compile(variant, target="interpreter")
    dims, dtype = made.bind(x)
    scans = [k.name for k in made.training.joint(dims, dtype, tuple(x)).whole.plan.kernels if is_scan(k.spec)]
    made.schedules = dict.fromkeys(scans, Schedule(order="chunk", rows=16, value_block=16, splits=2, keep=keep))
    leaves = {name: t.clone().requires_grad_() for name, t in x.items()}
    out = made(**leaves)
    assert isinstance(out, Tensor)
    found = [out, *torch.autograd.grad(out.float().square().sum(), list(leaves.values()))]
    return made, x, made.training.halves(dims, dtype, tuple(x)), found


def is_scan(spec: object) -> bool:
    return isinstance(spec, Scan | ScanGrad | Ladder | LadderGrad)


def steps(made: Compiled, x: dict[str, Tensor], halves: Joint) -> list[list[str]]:
    """The programs of the forward and of the backward."""
    dims, _ = made.bind(x)
    cut = halves.split
    found = [programs(made, half, dims)[1].values() for half in (cut.forward, cut.backward)]
    return [[s.program.name for p in half for s in p.steps] for half in found]


@pytest.mark.parametrize(
    ("preset", "knobs", "once"),
    [
        ("gdn", {"raw": True}, ("sums", "solve", "ends", "starts")),
        ("gdn", {}, ("solve", "unit_k", "ends", "starts")),
        ("deltanet", {"raw": True}, ("solve", "ends", "starts")),
        ("sse_gdn", {"parts": 3, "raw": True}, ("tally", "fill", "cut", "solve", "ends", "sorted_k", "sorted_v")),
        ("sse_gdn", {"parts": 3, "k": 2}, ("tally", "fill", "cut", "solve", "ends", "sorted_k", "sorted_v")),
        (
            "log_linear",
            {"rule": "delta", "levels": 8, "raw": True},
            ("sums", "solve", "leaf", "leaf_moves", "climb_moves1"),
        ),
        ("log_linear", {"rule": "delta", "levels": 8}, ("solve", "leaf", "leaf_moves", "climb1")),
        ("log_linear", {"rule": "additive", "levels": 8, "raw": True}, ("sums", "group")),
        ("sse", {"parts": 2, "raw": True}, ("tally", "fill", "cut", "sorted_k", "sorted_v", "sorted_decay")),
    ],
)
def test_a_backward_makes_nothing_again(preset: str, knobs: dict[str, Any], once: tuple[str, ...]) -> None:
    made, x, halves, found = called(preset, knobs, keep=True)
    forward, backward = steps(made, x, halves)
    for ending in once:
        again = [n for n in backward if n.endswith(f"_{ending}") and "_grad_ends" not in n and "_grad_starts" not in n]
        assert any(n.endswith(f"_{ending}") for n in forward) and not again, (ending, again)
    other, _, plain, expected = called(preset, knobs, keep=False)
    assert [len(s) for s in steps(other, x, plain)] > [len(s) for s in steps(made, x, halves)]
    for actual, right in zip(found, expected, strict=True):
        torch.testing.assert_close(actual, right, rtol=0, atol=0)


def test_programs_that_round_nothing_are_made_once_however_the_backward_rounds() -> None:
    """Sums of decays know of no products: those of an exact backward are the forward's."""
    made, x, halves, _ = called("gdn", {"raw": True}, keep=True)
    (back,) = (k.name for k in halves.whole.plan.kernels if isinstance(k.spec, ScanGrad))
    made.schedules = {**made.schedules, back: Schedule("chunk", 16, value_block=16, splits=2, keep=True, exact=True)}
    dims, dtype = made.bind(x)
    forward, backward = steps(made, x, made.training.halves(dims, dtype, tuple(x)))
    assert any(n.endswith("_sums") for n in forward) and not any(n.endswith("_sums") for n in backward)
    assert any(n.endswith("_ends") for n in backward), "a state of the backward is rounded less"


def test_what_is_kept_is_said() -> None:
    """By the prediction of memory, which is what the halves allocate; and no more where one scan keeps nothing."""
    sizes, dims = dict[bool, int](), {**SIZES, "DX": 4, "q_offset": 0}
    for keep in (True, False):
        made, x, halves, _ = called("sse_gdn", {"parts": 3, "raw": True}, keep)
        found = training_peak(made, dims, "bfloat16", tuple(x))
        names = dict.fromkeys(halves.split.forward.outputs)
        assert found.kept == sum(-(-halves.split.forward.buffer(n).nbytes(dims) // 512) * 512 for n in names)
        sizes[keep] = found.kept
    assert sizes[True] > sizes[False]
    made, x, halves, _ = called("sse_gdn", {"parts": 3, "raw": True}, True)
    one = next(k.name for k in halves.whole.plan.kernels if isinstance(k.spec, ScanGrad))
    made.schedules = {**made.schedules, one: Schedule(order="chunk", rows=16, value_block=16, splits=2)}
    assert training_peak(made, dims, "bfloat16", tuple(x)).kept == sizes[False]


def test_which_scans_keep() -> None:
    """Those in chunks on a GPU; a token's recurrence has nothing to keep."""
    sizes = {**SIZES, "D": 128, "DV": 128, "DX": 4, "T": 512, "q_offset": 0}
    made = sparsec.compile(sparsec.preset("sse_gdn", raw=True), target="triton:sm_90")
    names = tuple(n for n, spec in made.variant.inputs.items() if spec.dtype != "int32")
    for dtype, keeps in (("bfloat16", True), ("float32", False)):
        specs = [k.spec for k in made.training.joint(sizes, dtype, names).split.backward.kernels]
        found = [default(spec, "triton:sm_90") for spec in specs if isinstance(spec, ScanGrad)]
        assert len(found) == 2 and all(s.keep == keeps == (s.order == "chunk") for s in found)


def test_which_levels_keep() -> None:
    """Those of a delta rule on a GPU, whose blocks are a sixth of a step."""
    for rule in ("delta", "additive"):
        made = sparsec.compile(sparsec.preset("log_linear", rule=rule, levels=12, raw=True), target="triton:sm_90")
        dims = {**SIZES, "D": 128, "DV": 128, "T": 2048, "q_offset": 0}
        names = tuple(made.variant.inputs)
        (spec,) = (
            k.spec
            for k in made.training.joint(dims, "bfloat16", names).split.backward.kernels
            if isinstance(k.spec, LadderGrad)
        )
        assert default(spec, "triton:sm_90").keep is (rule == "delta")
        kept = training_peak(made, dims, "bfloat16", names).kept
        out = 2 * dims["T"] * dims["H"] * dims["DV"]
        assert (kept == out) is (rule == "additive")


def test_levels_under_unlike_schedules_keep_nothing() -> None:
    """Chunks of other sizes are not the forward's; gradients are made of blocks of their own."""
    made, x, halves, found = called("log_linear", {"rule": "delta", "levels": 8, "raw": True}, keep=True)
    (back,) = (k.name for k in halves.split.backward.kernels if isinstance(k.spec, LadderGrad))
    made.schedules = {**made.schedules, back: Schedule(order="chunk", rows=32, value_block=16, keep=True)}
    dims, dtype = made.bind(x)
    _, backward = steps(made, x, made.training.halves(dims, dtype, tuple(x)))
    assert {"leaf", "leaf_moves"} <= {n.rpartition("grad_q_")[2] for n in backward}
    leaves = {name: t.clone().requires_grad_() for name, t in x.items()}
    out = made(**leaves)
    assert isinstance(out, Tensor)
    for actual, right in zip(
        torch.autograd.grad(out.float().square().sum(), list(leaves.values())), found[1:], strict=True
    ):
        torch.testing.assert_close(actual.float(), right.float(), rtol=0.05, atol=0.05)


def test_a_backward_reads_what_its_own_forward_kept() -> None:
    """Not what another one did, in other segments, under the schedules of now."""
    made, x, _, (_, *expected) = called("sse_gdn", {"parts": 3, "raw": True}, keep=True)
    few = dict(made.schedules)
    more = {name: replace(schedule, splits=4) for name, schedule in few.items()}
    calls = []
    for schedules in (few, more):
        made.schedules = schedules
        leaves = {name: t.clone().requires_grad_() for name, t in x.items()}
        out = made(**leaves)
        assert isinstance(out, Tensor)
        calls.append((out, [*leaves.values()]))
    for out, given in reversed(calls):
        found = torch.autograd.grad(out.float().square().sum(), given)
    for actual, right in zip(found, expected, strict=True):
        torch.testing.assert_close(actual, right, rtol=0, atol=0)


BESIDE = """variant beside(q: [B,T,H,D], k: [B,T,HKV,D], v: [B,T,HKV,DV], beta: [B,T,HKV], g: [B,T,HKV] float32,
                          ids: [B,T,HKV,2] int32) {
  memory = tokens(k, v) {chunk = 16}
  chosen = given(ids) {size = 16, scope = kv_head}
  near = attend(q, memory, chosen, mask(memory) {where = j <= i})
  far = recall(q, write(state(), k, v, beta=beta, decay=g) {rule = delta, decay_kind = scalar})
  return map(near, far) {fn = x0 + x1}
}"""


def test_a_backward_adds_in_order_if_that_is_asked_for_after_its_forward() -> None:
    """What another kernel keeps of the forward is none of its business; its schedule is of the backward's time."""
    made = sparsec.compile(parse(BESIDE), "interpreter")
    x = sparsec.inputs(made.variant, dtype="bfloat16", **SIZES)
    leaves = {name: t.requires_grad_(t.is_floating_point()) for name, t in x.items()}
    learned = [name for name, t in leaves.items() if t.requires_grad]
    dims, dtype = made.bind(x)
    kernels = made.training.joint(dims, dtype, tuple(learned)).whole.plan.kernels
    chunks = Schedule(order="chunk", rows=16, value_block=16, keep=True)
    made.schedules = {k.name: chunks for k in kernels if is_scan(k.spec)}
    (asked,) = (k for k in kernels if isinstance(k.spec, GatheredGradQ))
    made.schedules[asked.name] = Schedule("key_outer", rows=32, block=16, stages=2)
    halves = made.training.halves(dims, dtype, learned)
    assert halves is not made.training.joint(dims, dtype, tuple(learned))

    def additions() -> bool:
        _, _, built = whole(made, halves.split.backward, dims)
        return any(adds(kernel.lowered) for kernel in built)

    assert additions()
    out = made(**leaves)
    assert isinstance(out, Tensor)
    torch.use_deterministic_algorithms(True)
    try:
        assert not additions()
        found = torch.autograd.grad(out.float().square().sum(), [leaves[n] for n in learned])
    finally:
        torch.use_deterministic_algorithms(False)
    expected = torch.autograd.grad(made(**leaves).float().square().sum(), [leaves[n] for n in learned])  # type: ignore[union-attr]
    for actual, right in zip(found, expected, strict=True):
        torch.testing.assert_close(actual.float(), right.float(), rtol=2e-2, atol=2e-2)
