"""fla's native sparse attention: whole, with given indices, and its selected branch without the rest."""

import importlib
from typing import Any

from torch import Tensor

from sparsec.benchmarks.cases import Case, Inputs, SelectedCase
from sparsec.benchmarks.cases_nsa import NsaCase
from sparsec.benchmarks.peers.form import Compiler, Form, Run
from sparsec.benchmarks.step import Step, leaves_of


def forms(_case: SelectedCase) -> list[Form]:
    """`public` also mean-pools keys and values, which the selected branch does not need; `branch` leaves that out."""
    return [Form("fla", "public", _public), Form("fla", "branch", _branch)]


def whole_forms(case: NsaCase) -> list[Form]:
    """The public call that compresses and chooses itself; its windows are its blocks, so that others have no peer."""
    return [Form("fla", "whole", _whole)] if case.size == case.stride == case.block else []


def _module() -> Any:
    return importlib.import_module("fla.ops.nsa.parallel")


def _public(case: Case, inputs: Inputs, _compiler: Compiler) -> Run:
    assert isinstance(case, SelectedCase)
    nsa, indices = _module().parallel_nsa, inputs["indices"].long()
    leaves = leaves_of(case, inputs)
    q, k, v = leaves.values()

    def run() -> Tensor:
        out: Tensor = nsa(q, k, v, block_indices=indices, block_counts=case.slots, block_size=case.block)
        return out

    return Step(case, run, leaves) if case.train else run


def _branch(case: Case, inputs: Inputs, _compiler: Compiler) -> Run:
    assert isinstance(case, SelectedCase)
    attend, indices = _module().ParallelNSAFunction.apply, inputs["indices"].long()
    leaves = leaves_of(case, inputs)
    q, k, v = leaves.values()

    def run() -> Tensor:
        out: Tensor = attend(q, k, v, indices, case.slots, case.block, case.D**-0.5, None)
        return out

    return Step(case, run, leaves) if case.train else run


def _whole(case: Case, inputs: Inputs, _compiler: Compiler) -> Run:
    assert isinstance(case, NsaCase)
    nsa, leaves = _module().parallel_nsa, leaves_of(case, inputs)
    q, k, v, g_cmp, g_slc = leaves.values()

    def run() -> Tensor:
        out: Tensor = nsa(q, k, v, g_cmp=g_cmp, g_slc=g_slc, block_counts=case.slots, block_size=case.block)
        return out

    return Step(case, run, leaves) if case.train else run
