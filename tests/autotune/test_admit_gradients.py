"""Admission of backward kernels on the tile interpreter: right gradients pass, each wrong one is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import pytest

import sparsec
from sparsec.autotune.admit import Admission
from sparsec.autotune.cases import Case, cases
from sparsec.autotune.joint import Joint, is_backward
from sparsec.autotune.space import Space
from sparsec.autotune.trial import Rejection
from sparsec.autotune.truth import Truth
from sparsec.autotune.verdict import wrong
from sparsec.frontends.text import parse
from sparsec.lower.registry import default
from sparsec.plan.grad_specs import CombineGrad, GatheredGradQ, RowDot
from sparsec.plan.plan import Kernel
from sparsec.runtime.compiled import compile
from sparsec.runtime.kernel import BuiltKernel
from sparsec.scalar.expr import var
from sparsec.tile.schedule import Schedule

Change = Callable[[Any], Any]

SUNK = """variant sunk(q: [B,TQ,H,D], k: [B,TK,HKV,D], v: [B,TK,HKV,DV], s: [H] float32) {
  m = tokens(k, v)
  o = attend(q, m, mask(m) {where = j <= i & i - j < 24}, sink=s) {sink = given}
  return o, lse(o)
}"""
IMPORTANT = """variant important(q: [B,TQ,H,D], k: [B,TK,HKV,D], v: [B,TK,HKV,DV]) {
  memory = tokens(k, v) {chunk = 16}
  marks = summary(memory) {size = 8, stride = 4}
  shares = reduce(score(q, marks)) {over = group, op = sum, pre = softmax, visible = 4 * c + 7 <= i}
  worth = reduce(shares) {over = overlap, size = 8, stride = 4, block = 16, importance = overlap}
  chosen = topk(worth) {k = 2, size = 16, eligible = 16 * c <= i, order = newest,
    selector_gradient = through_weights}
  w = weights(worth, chosen) {fn = stick}
  return attend(q, memory, chosen, weights=w) {per = chunk}
}"""
INSIDE = """variant inside(q: [B,TQ,H,D], k: [B,TK,HKV,D], v: [B,TK,HKV,DV], s: [H] float32) {
  memory = tokens(k, v) {chunk = 16}
  scores = reduce(score(q, summary(memory) {size = 16, stride = 16})) {over = group, op = sum}
  chosen = topk(scores) {k = 2, size = 16, eligible = 16 * c <= i}
  w = weights(scores, chosen) {fn = softmax}
  return attend(q, memory, chosen, weights=w, sink=s) {per = chunk, sink = given}
}"""
TEXTS = {"sunk": SUNK, "important": IMPORTANT, "inside": INSIDE}
KNOBS: dict[str, dict[str, Any]] = {
    "streaming": {"window": 24, "sinks": 4},
    "hsa": {"chunk": 16, "k": 2},
    "moba": {"block": 16, "k": 2},
    "nsa": {"k": 3, "block": 16, "size": 16, "stride": 16, "window": 24},
}
SMALL = Space(Schedule(rows=16, block=16, split_dims=False), {})


class Court:
    """A joint variant with the cases of each of its backward kernels."""

    def __init__(self, name: str, length: int, wrt: tuple[str, ...] | None = None) -> None:
        variant = parse(TEXTS[name]) if name in TEXTS else sparsec.preset(name, **KNOBS[name])
        compiled = compile(variant, "interpreter")
        dims: dict[str, Any] = {"H": 2, "HKV": 1, "D": 16, "DV": 16, "DR": 16, "TQ": length, "TK": length}
        known = {str(d) for spec in compiled.variant.inputs.values() for d in spec.shape}
        self.joint = Joint.of(compiled, wrt)
        drawn = sparsec.inputs(compiled.variant, **{n: s for n, s in dims.items() if n in known})
        self.inputs = self.joint.with_cotangents(drawn)
        self.plan = self.joint.plan(*self.joint.bind(self.inputs))
        self.kernels = {type(k.spec).__name__: k for k in self.plan.kernels if is_backward(k)}
        self.cases: dict[str, list[Case]] = {}

    def judge(self, kind: str, change: Change = lambda spec: spec) -> Rejection | None:
        """What admission says of a kernel, changed or not."""
        kernel = self.kernels[kind]
        if kind not in self.cases:
            self.cases[kind] = cases(self.joint, self.plan, self.inputs, None, kernel, SMALL)
        return Admission(kernel, self.cases[kind]).judge(self._built(kernel, change(kernel.spec)))

    def _built(self, kernel: Kernel, spec: Any) -> BuiltKernel:
        schedule = default(spec, "tvm:llvm")
        return BuiltKernel(replace(kernel, spec=spec), schedule, self.joint.target, self.joint.cache_dir)


@cache
def court(name: str) -> Court:
    """Short, so that every row is judged."""
    return Court(name, 61)


KINDS = [
    ("streaming", ("TiledGradQ", "TiledGradKV")),
    ("hsa", ("GatheredGradQ", "GatheredGradKV", "SelectorGradQ", "SelectorGradKeys")),
    ("inside", ("GatheredGradQ", "GatheredGradKV", "ChunkSinkGrad")),
    ("important", ("GatheredGradQ", "GatheredGradKV", "SelectorGradQ", "PooledGrad", "Total", "SummariseGrad")),
]
EVERY = [(name, kind) for name, kinds in KINDS for kind in kinds]


def test_every_backward_kernel_of_the_designs_is_tried() -> None:
    assert {(name, kind) for name, _ in KINDS for kind in court(name).kernels} == set(EVERY)


@pytest.mark.parametrize(("name", "kind"), EVERY)
def test_right_gradients_are_admitted(name: str, kind: str) -> None:
    assert court(name).judge(kind) is None


def scaled(spec: Any) -> Any:
    """Another scale of the scores."""
    return replace(spec, forward=replace(spec.forward, scale=spec.forward.scale * 1.01))


def shifted(spec: Any) -> Any:
    """A mask that shows one key more, or hides one."""
    forward = spec.forward
    if hasattr(forward, "pieces"):
        piece = forward.pieces[0]
        return replace(spec, forward=replace(forward, pieces=(replace(piece, where=piece.where & (var("j") != 7)),)))
    return replace(spec, forward=replace(forward, where=var("j") % 16 != 7))


def stale(spec: Any) -> Any:
    """The rowdot for a log-sum-exp, and the other way round."""
    return replace(spec, delta=spec.forward.lse)


def without_weights(spec: Any) -> Any:
    """Gradients of another weight function."""
    return replace(spec, forward=replace(spec.forward, weights="softmax"))


WRONG: list[tuple[str, str, Change]] = [
    ("streaming", "TiledGradQ", scaled),
    ("streaming", "TiledGradQ", shifted),
    ("streaming", "TiledGradKV", scaled),
    ("streaming", "TiledGradKV", shifted),
    ("streaming", "TiledGradKV", stale),
    ("streaming", "TiledGradQ", lambda spec: replace(spec, forward=replace(spec.forward, out=spec.grad))),
    ("hsa", "GatheredGradQ", scaled),
    ("hsa", "GatheredGradQ", shifted),
    ("hsa", "GatheredGradKV", scaled),
    ("hsa", "GatheredGradKV", shifted),
    ("hsa", "SelectorGradQ", scaled),
    ("hsa", "SelectorGradQ", without_weights),
    ("hsa", "SelectorGradKeys", scaled),
    ("important", "SelectorGradQ", without_weights),
    ("important", "PooledGrad", scaled),
    ("inside", "ChunkSinkGrad", scaled),
]


def test_rowdots_beside_a_merge_are_judged() -> None:
    nsa = court("nsa")
    made = nsa.kernels["CombineGrad"].spec
    assert isinstance(made, CombineGrad) and len(made.deltas) == 3 and None not in made.deltas
    assert nsa.judge("CombineGrad") is None
    found = nsa.judge("CombineGrad", lambda spec: replace(spec, deltas=spec.deltas[::-1]))
    assert found is not None and "delta" in found.reason, found


def test_rowdots_of_their_own_are_judged() -> None:
    alone = Court("streaming", 61, ("k", "v"))
    assert set(alone.kernels) == {"RowDot", "TiledGradKV"}
    assert alone.judge("RowDot") is None
    assert alone.judge("RowDot", lambda spec: replace(spec, out=spec.grad)) is not None


@pytest.mark.parametrize("length", [61, 401])
def test_rowdots_with_a_learned_sink_are_judged(length: int) -> None:
    """From the buffers that it reads, not from scores, which it does not know."""
    sunk = Court("sunk", length)
    kernel = sunk.kernels["RowDot"]
    spec = kernel.spec
    assert isinstance(spec, RowDot) and spec.sink_grad is not None and spec.lse_grad is not None
    assert sunk.judge("RowDot") is None
    case = sunk.cases["RowDot"][0]
    written = Admission(kernel, [case]).run(sunk._built(kernel, spec), case)
    truth = Truth(kernel, case.buffers, case.dims, None)
    for name in (spec.sink_grad, spec.delta):
        found = wrong(truth, {**written, name: written[name] * 1.001})
        assert wrong(truth, written) is None and found is not None and found.startswith(name), found


def test_rowdots_of_gradients_of_queries_are_judged() -> None:
    moba = court("moba")
    made = moba.kernels["GatheredGradQ"].spec
    assert isinstance(made, GatheredGradQ) and made.dots and "RowDot" not in moba.kernels
    assert moba.judge("GatheredGradQ") is None
    found = moba.judge("GatheredGradQ", lambda spec: replace(spec, forward=replace(spec.forward, out=spec.grad)))
    assert found is not None and found.why == "wrong result", found


def test_gradients_of_queries_with_others_added_are_judged() -> None:
    nsa = court("nsa")
    made = nsa.kernels["GatheredGradQ"].spec
    assert isinstance(made, GatheredGradQ) and len(made.terms) == 2
    assert nsa.judge("GatheredGradQ") is None
    found = nsa.judge("GatheredGradQ", lambda spec: replace(spec, terms=spec.terms[:1]))
    assert found is not None and found.why == "wrong result", found


def test_rowdots_beside_a_merge_are_judged_on_sampled_rows() -> None:
    assert Court("nsa", 401).judge("CombineGrad") is None


@pytest.mark.parametrize(("name", "kind", "change"), WRONG)
def test_wrong_gradients_are_refused(name: str, kind: str, change: Change) -> None:
    found = court(name).judge(kind, change)
    assert found is not None and found.why == "wrong result", found


@pytest.mark.parametrize("kind", ["TiledGradQ", "TiledGradKV"])
def test_at_full_length_sampled_rows_are_judged_and_all_are_compared(kind: str) -> None:
    long = Court("streaming", 401)
    assert long.judge(kind) is None
    reduced, sampled, full = long.cases[kind]
    assert sampled.judged and not full.judged
    grad = sampled.buffers["grad_out"]
    assert 0 < int((grad != 0).any(-1).any(-1).sum()) < 401 == full.buffers["grad_out"].shape[1]
    verdict = long.judge(kind, scaled)
    assert verdict is not None and f"TQ = {reduced.dims['TQ']}" in verdict.reason
    long.cases[kind] = [sampled, full]
    assert long.judge(kind) is None
    verdict = long.judge(kind, scaled)
    assert verdict is not None and "TQ = 401" in verdict.reason


def test_a_joint_variant_has_nothing_that_the_compiled_one_worked_out_for_itself() -> None:
    compiled = compile(sparsec.preset("streaming", **KNOBS["streaming"]), "interpreter")
    assert compiled.training is compiled.training
    compiled.builds = 7
    joint = Joint.of(compiled, None)
    assert "training" not in vars(joint) and "tables" not in vars(joint) and joint.builds == 0
    assert joint.schedules is compiled.schedules and joint.records is compiled.records
