"""Decoding banks with routes: a step of one token touches the parts that it chose and no others."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import sparsec
from sparsec.frontends.text import parse
from sparsec.ir.variant import Variant, dim_names
from sparsec.lower.scan.schedules import lower, one_token_form
from sparsec.lower.scan.token import one_token
from sparsec.oracle.error import check
from sparsec.oracle.truth import oracle
from sparsec.plan.states.scan_specs import Scan
from sparsec.runtime.compiled import Compiled, compile
from sparsec.runtime.decode import space
from sparsec.runtime.decode.cache_state import Cache
from sparsec.testing.inputs.recurrent import ROUTES, draw
from sparsec.tile.schedule import Schedule, ScheduleError

SIZES = {"B": 2, "H": 4, "HKV": 2, "D": 16, "DV": 16, "DX": 24}
LENGTH, STEPS = 16, (9, 1, 1, 3, 1, 1)
PRESETS: dict[str, tuple[str, dict[str, Any]]] = {
    "sse": ("sse", {}),
    "sse by the delta rule, two at a time": ("sse", {"rule": "gdn", "k": 2}),
    "rsa": ("rsa", {}),
    "rsa, a softmax over two parts": ("rsa", {"k": 2, "routing": "tree"}),
    "rsa, slots of two parts": ("rsa", {"k": 2, "levels": 2, "readout": "slot_softmax"}),
    "gated slots": ("gsa", {}),
    "rsa, additive, a tree, a sum": ("rsa", {"rule": "additive", "routing": "tree", "readout": "sum"}),
}


def declared(name: str) -> Variant:
    if name in ROUTES:
        return parse(ROUTES[name])
    design, knobs = PRESETS[name]
    return sparsec.preset(design, **knobs)


def begun(name: str, target: str, deterministic: bool) -> tuple[Compiled, dict[str, Tensor], Cache]:
    """A design compiled, its tokens, an empty cache."""
    variant = declared(name)
    made = compile(variant, target)
    sizes: dict[str, Any] = {n: s for n, s in {**SIZES, "T": LENGTH}.items() if n in dim_names(variant)}
    x = draw(variant, sizes) if name in ROUTES else sparsec.inputs(variant, seed=0, **sizes)
    first = {h.initial: x[h.initial] for h in made.decoder.spec.states if h.initial is not None}
    return made, x, made.init_cache(2, states=first, deterministic=deterministic)


def tokens(made: Compiled, x: dict[str, Tensor], start: int, stop: int) -> dict[str, Any]:
    declared_ = made.variant.inputs
    growing = {n for n, s in declared_.items() if len(s.shape) > 1 and str(s.shape[1]) == "T"}
    first = {held.initial for held in made.decoder.spec.states}
    return {n: y[:, start:stop] if n in growing else y for n, y in x.items() if n not in first}


def decoded(made: Compiled, cache: Cache, x: dict[str, Tensor], steps: tuple[int, ...]) -> Tensor:
    found, start = [], cache.known_lengths[0]
    for count in steps:
        out = made.decode(cache, **tokens(made, x, start, start + count))
        found.append(out[0] if isinstance(out, tuple) else out)
        start += count
    return torch.cat(found, dim=1)


@pytest.mark.parametrize("deterministic", [True, False])
@pytest.mark.parametrize("name", [*ROUTES, *PRESETS])
def test_prefill_then_steps_is_one_forward(name: str, deterministic: bool) -> None:
    made, x, cache = begun(name, "interpreter", deterministic)
    truth = oracle(made.variant, x, form="vector")
    verdict = check(decoded(made, cache, x, STEPS), truth[0] if isinstance(truth, tuple) else truth, "float32", "o")
    assert verdict, verdict.sentence
    assert all(len(b.in_place) == len(made.decoder.spec.states) for b in made.decoder.kept())


@pytest.mark.parametrize("name", ["two of four", "sse", "rsa, a softmax over two parts"])
def test_compiled_for_this_cpu(name: str) -> None:
    made, x, cache = begun(name, "tvm:llvm", False)
    truth = oracle(made.variant, x, form="vector")
    verdict = check(decoded(made, cache, x, STEPS), truth[0] if isinstance(truth, tuple) else truth, "float32", "o")
    assert verdict, verdict.sentence


@pytest.mark.parametrize("name", ["two of four", "lists per head", "erasing parts"])
def test_parts_that_rest_are_not_touched(name: str) -> None:
    """A NaN in them stays where it is, and harms nobody."""
    made, x, cache = begun(name, "interpreter", False)
    decoded(made, cache, x, (12,))
    before = cache.snapshot()
    expected = decoded(made, cache, x, (1,))
    cache.restore(before)
    chosen = x["p"][:, 12]  # [B, lists, slots]
    resting = ~(chosen[..., None] == torch.arange(4)).any(2)  # [B, lists, parts]
    held = cache.states["m_s"]
    resting = resting.expand(2, held.shape[2], 4).transpose(1, 2)
    held[resting] = torch.nan
    assert torch.equal(decoded(made, cache, x, (1,)), expected)
    assert bool(held[resting].isnan().all()) and not bool(held[~resting].isnan().any()) and bool(resting.any())


def test_a_call_of_more_tokens_does_not_take_it() -> None:
    made, x, cache = begun("two of four", "interpreter", False)
    dims, dtype = made.bind(x)
    (spec,) = [k.spec for k in made.plan(dims, dtype).kernels if isinstance(k.spec, Scan)]
    one = one_token_form(spec, "interpreter")
    assert one_token.fits(spec)
    with pytest.raises(ScheduleError, match="decode steps of one token"):
        lower(spec, one)
    names = [k.name for k in made.decoder.step.plan({**dims, "TQ": 1, "TK": 1}, dtype).kernels]
    made.decoder.step.schedules = {name: one for name in names if name.startswith("scan")}
    truth = oracle(made.variant, x, form="vector")
    assert check(decoded(made, cache, x, STEPS), truth[0], "float32", "o")


def test_parts_whose_kernel_is_not_proved_are_written_by_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy of the chosen parts alone would lose the others."""
    wide = Schedule(order=one_token.ORDER, value_block=16, warps=16)
    monkeypatch.setattr(space, "one_token_form", lambda spec, target: wide)
    made, x, cache = begun("two of four", "interpreter", False)
    truth = oracle(made.variant, x, form="vector")
    assert check(decoded(made, cache, x, STEPS), truth[0], "float32", "o")
    dims, dtype = made.bind(x)
    step = made.decoder.step.plan({**dims, "TQ": 1, "TK": 1}, dtype)
    (spec,) = [k.spec for k in step.kernels if isinstance(k.spec, Scan)]
    assert not space.serves(spec, wide, 1) and space.serves(spec, replace(wide, warps=1), 1)
