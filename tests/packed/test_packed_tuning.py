"""Tuning of packed calls: documents are judged one by one, mistakes refused, and records kept apart from dense ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

import sparsec
from sparsec.autotune import TuneError, tune
from sparsec.autotune.admit import Admission
from sparsec.autotune.cases import Case
from sparsec.autotune.joint import Joint, is_backward
from sparsec.autotune.packed import PackedCall
from sparsec.autotune.space import Space
from sparsec.cli import main
from sparsec.ir.error import InputError
from sparsec.lower.registry import default
from sparsec.oracle.values import OracleError
from sparsec.plan.plan import Kernel
from sparsec.plan.states.scan_specs import Scan, ScanGrad
from sparsec.runtime.compiled import Compiled, compile
from sparsec.runtime.kernel import BuiltKernel
from sparsec.runtime.packed.documents import Given
from sparsec.runtime.packed.inputs import packed_inputs
from sparsec.runtime.records import bucket
from sparsec.testing.whole.by_chunks import CHUNKS
from sparsec.tile.schedule import Schedule

Change = Callable[[Any], Any]
DIMS = {"H": 2, "HKV": 1, "D": 16, "DV": 16}
SMALL = Space(Schedule(rows=16, block=16, split_dims=False), {})
SHORT = (33, 1, 18)


def packed_call(compiled: Compiled, sizes: tuple[int, ...], gradients: bool = False, **more: int) -> PackedCall:
    inputs = packed_inputs(compiled, sizes, {**DIMS, **more}, "float32")
    given = Given(inputs.pop("cu_seqlens"), None, None, None, None)
    return PackedCall(compiled, Joint.of(compiled, None) if gradients else compiled, inputs, given)


@cache
def streaming(gradients: bool, sizes: tuple[int, ...] = SHORT) -> PackedCall:
    return packed_call(compile(sparsec.preset("streaming", window=12, sinks=2), "interpreter"), sizes, gradients)


def judged(call: PackedCall, kernel: Kernel, cases: list[Case], change: Change = lambda spec: spec) -> str:
    """What admission says of a kernel, changed or not; "" if it is admitted."""
    spec = change(kernel.spec)
    built = BuiltKernel(replace(kernel, spec=spec), default(spec, "tvm:llvm"), call.compiled.target, Path())
    found = Admission(kernel, cases).judge(built)
    return "" if found is None else found.reason


def test_forward_kernels_are_admitted_and_mistakes_are_not() -> None:
    call = streaming(False)
    (kernel,) = call.plan.kernels
    cases = call.cases(kernel, SMALL)
    assert judged(call, kernel, cases) == ""
    assert "at documents of 33, 1, 18 tokens" in judged(call, kernel, cases, lambda spec: replace(spec, scale=0.3))


def test_gradients_are_admitted_and_mistakes_are_not() -> None:
    call = streaming(True)
    kernel = next(k for k in call.plan.kernels if type(k.spec).__name__ == "TiledGradQ")
    cases = call.cases(kernel, SMALL)
    assert judged(call, kernel, cases) == ""
    change = lambda spec: replace(spec, forward=replace(spec.forward, scale=0.3))  # noqa: E731
    assert "grad_q is outside" in judged(call, kernel, cases, change)


def test_long_documents_are_cut_and_judged_on_some() -> None:
    call = streaming(False, (211, 5, 40, 3, 150, 9))
    (kernel,) = call.plan.kernels
    cases = call.cases(kernel, SMALL)
    assert [case.whole for case in cases] == [False, False, True]
    low, reduced, full = cases
    assert reduced.size == "documents of 93, 31, 1 tokens" and full.size == "documents of 211, 5, 40, 3, … tokens"
    rows = [part.dims["TQ"] for part, _ in full.parts(kernel, {n: full.buffers[n] for n in kernel.writes})]
    assert rows == [211, 3, 9] and low.buffers["q"].min() > 0
    assert judged(call, kernel, cases) == ""
    assert (
        Admission(kernel, [replace(full, judged=False)]).judge(
            BuiltKernel(kernel, SMALL.default, call.compiled.target, Path())
        )
        is None
    )


@pytest.mark.parametrize(("sizes", "gradients"), [((1, 1, 1), True), ((), False)])
def test_what_no_document_can_judge_is_not_admitted(sizes: tuple[int, ...], gradients: bool) -> None:
    """Gradients on documents of one token; anything on empty documents."""
    call = streaming(gradients, sizes) if sizes else _empty()
    kernel = next(k for k in call.plan.kernels if is_backward(k) is gradients and type(k.spec).__name__ != "RowDot")
    cases = call.cases(kernel, SMALL)
    with pytest.raises(OracleError, match=r"no document has \d or more queries and keys"):
        judged(call, kernel, cases)


def _empty() -> PackedCall:
    """A call of two documents without tokens."""
    compiled = compile(sparsec.preset("streaming", window=12, sinks=2), "interpreter")
    inputs = {n: x[:0] for n, x in packed_inputs(compiled, (1,), DIMS, "float32").items() if n != "cu_seqlens"}
    return PackedCall(compiled, compiled, inputs, Given(torch.zeros(3, dtype=torch.int32), None, None, None, None))


def test_chunk_inputs_are_packed_by_document() -> None:
    compiled = compile(sparsec.preset("hsa", chunk=16, k=2), "interpreter")
    call = packed_call(compiled, (40, 20), DR=16)
    kernel = next(k for k in call.plan.kernels if type(k.spec).__name__ == "Selector")
    assert judged(call, kernel, call.cases(kernel, SMALL)) == ""


@pytest.mark.parametrize(("name", "more"), [("sse", {"DX": 16}), ("sse_gdn", {"DX": 16}), ("delta_product", {})])
def test_chunks_of_parts_and_steps_are_admitted_and_mistakes_are_not(name: str, more: dict[str, int]) -> None:
    """Forward and backward, under a schedule that was chosen for documents."""
    chunks = replace(CHUNKS, documents=True)
    call = packed_call(compile(sparsec.preset(name), "interpreter"), SHORT, gradients=True, HKV=2, **more)
    scans = [(k, k.spec) for k in call.plan.kernels if isinstance(k.spec, Scan | ScanGrad)]
    assert len(scans) == (4 if more else 2)
    for kernel, spec in scans:
        cases = call.cases(kernel, Space(chunks, {}))
        wrong = replace(spec, forward=off(spec.forward)) if isinstance(spec, ScanGrad) else off(spec)
        for made, right in ((kernel, True), (replace(kernel, spec=wrong), False)):
            built = BuiltKernel(made, chunks, call.compiled.target, Path())
            assert (Admission(kernel, cases).judge(built) is None) is right


def off(spec: Scan) -> Scan:
    """A scan whose reads have another scale."""
    return replace(spec, reads=tuple(replace(read, scale=0.9 * read.scale) for read in spec.reads))


def test_a_tuned_packed_call_keeps_its_own_record(tmp_path: Path) -> None:
    compiled = compile(sparsec.preset("streaming", window=12, sinks=2), "cpu", tmp_path)
    inputs = packed_inputs(compiled, (40, 7), DIMS, "float32")
    report = tune(compiled, inputs, trials=1, workers=1, cu_seqlens=inputs.pop("cu_seqlens"))
    (found,) = report.kernels
    assert len(found.trials) == 1 and found.schedule is not None
    call = packed_call(compiled, (40, 7))
    (kernel,), target = call.plan.kernels, compiled.target
    length = bucket(compiled.lengths.longest(call.dims))
    assert compiled.preferred(kernel, call.dims) == found.schedule
    assert compiled.records.best(kernel.spec, target, length, packed=True) == found.schedule
    assert compiled.records.best(kernel.spec, target, length) is None


def test_what_cannot_be_tuned_says_so() -> None:
    compiled = compile(sparsec.preset("streaming", window=12, sinks=2), "cpu")
    inputs = packed_inputs(compiled, (8, 7), DIMS, "float32")
    cu_seqlens = inputs.pop("cu_seqlens")
    with pytest.raises(TuneError, match="end with their keys"):
        tune(compiled, inputs, trials=1, q_offset=3, cu_seqlens=cu_seqlens)
    with pytest.raises(InputError, match="it ends at 9"):
        tune(compiled, inputs, trials=1, cu_seqlens=torch.tensor([0, 9], dtype=torch.int32))
    with pytest.raises(InputError, match="a token or more"):
        packed_inputs(compiled, (), DIMS, "float32")


def test_the_command_takes_documents(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    asked: dict[str, object] = {}

    def stub(compiled: Compiled, inputs: dict[str, torch.Tensor], **options: object) -> object:
        asked.update(options, rows=inputs["q"].shape[0])
        raise TuneError("stop here")

    monkeypatch.setattr("sparsec.autotune.tune", stub)
    assert main(["tune", "streaming", "window=12", "--documents", "30,5", "--target", "cpu"]) != 0
    assert asked["rows"] == 35 and str(asked["cu_seqlens"]).startswith("tensor([ 0, 30, 35]")
    assert main(["tune", "streaming", "--documents", "30,x"]) == 2
    assert "whole numbers from 1" in " ".join(capsys.readouterr().err.split())
