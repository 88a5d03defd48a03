"""Recurrences of matrix states on the GPU that is here, token by token: outputs, last states and gradients."""

from __future__ import annotations

import pytest
import torch

import sparsec
from sparsec.frontends.preset import find
from sparsec.frontends.text import parse
from sparsec.lower.registry import default
from sparsec.lower.scan.schedules import token_form
from sparsec.plan.plan import Kernel
from sparsec.plan.states.scan_specs import Scan, ScanGrad
from sparsec.runtime.compiled import Compiled, compile
from sparsec.testing.inputs.recurrent import RECURRENT, draw
from sparsec.testing.whole.trained import wrong_on
from sparsec.tile.schedule import Schedule

pytestmark = pytest.mark.gpu

NAMES = ["linear", "retnet", "mamba2", "gla", "hgrn2", "deltanet", "gdn", "kda", "gdn2", "rwkv7"]
SIZES = {"B": 2, "T": 67, "H": 4, "HKV": 2, "D": 64, "DV": 48}


def by_token(kernel: Kernel, dims: object) -> Schedule:
    """The token recurrence for every state, whatever the default."""
    found = default(kernel.spec, "triton:sm_90")
    return token_form(kernel.spec, found) if isinstance(kernel.spec, Scan | ScanGrad) else found


@pytest.mark.parametrize("name", NAMES)
def test_presets_by_token(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Compiled, "schedule", staticmethod(by_token))
    knobs = {"raw": True, "initial": True, "final": True}
    variant = sparsec.preset(name, **{k: v for k, v in knobs.items() if k in {knob.name for knob in find(name).knobs}})
    dtype = ("bfloat16", "float16", "float32")[NAMES.index(name) % 3]
    drawn = sparsec.inputs(variant, dtype=dtype, device="cuda", **SIZES)
    assert wrong_on(compile(variant, "cuda"), drawn, dtype) == []


@pytest.mark.parametrize("name", RECURRENT)
def test_rules_by_token(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Decays of 0 and −inf among them."""
    monkeypatch.setattr(Compiled, "schedule", staticmethod(by_token))
    made = compile(parse(RECURRENT[name]), "cuda")
    drawn = {n: x.cuda() for n, x in draw(made.variant, SIZES, torch.float32).items()}
    assert wrong_on(made, drawn, "float32") == []
