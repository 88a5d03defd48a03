"""Decoding with matrix states: prefill then steps equals one forward bit for bit, and states are written in place."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import sparsec
from sparsec.frontends.preset import find
from sparsec.frontends.text import parse
from sparsec.ir.error import DeclarationError, InputError
from sparsec.ir.variant import Variant, dim_names
from sparsec.oracle.error import check
from sparsec.oracle.replay import replay
from sparsec.oracle.truth import oracle
from sparsec.passes.pipeline import run
from sparsec.passes.stream import stream
from sparsec.runtime.compiled import Compiled, compile
from sparsec.runtime.decode.cache_state import Cache
from sparsec.testing.inputs.recurrent import RECURRENT, draw

NAMES = ["linear", "retnet", "mamba2", "gla", "hgrn2", "deltanet", "gdn", "kda", "gdn2", "rwkv7", "row_sparse"]
SIZES = {"B": 2, "H": 4, "HKV": 2, "D": 16, "DV": 16}
LENGTH, STEPS = 31, (20, 1, 1, 3, 1, 5)
HEAD = "q: [B,T,H,D], k: [B,T,HKV,D], v: [B,T,HKV,DV], g: [B,T,HKV] float32"
FAR = "write(state(), k, v, decay=g) {decay_kind = scalar}"
MIXED = {
    "state and window": f"""variant window({HEAD}) {{
      m = tokens(k, v)
      near = attend(q, m, mask(m) {{where = (j <= i) & (j > i - 12)}})
      return merge(near, recall(q, {FAR}) {{scale = rsqrt(D)}}) {{fn = sum}}
    }}""",
    "unit keys of both": f"""variant keys({HEAD}) {{
      unit = map(k) {{row = l2norm}}
      m = tokens(unit, v)
      near = attend(q, m, mask(m) {{where = j <= i}})
      far = recall(q, write(state(), unit, v, decay=g) {{decay_kind = scalar, rule = delta}})
      return merge(near, far) {{fn = sum}}
    }}""",
    "two banks": f"""variant banks({HEAD}) {{
      one = write(state(), k, v, decay=g) {{decay_kind = scalar}}
      two = write(state(), k, v) {{rule = delta}}
      return merge(recall(q, one), recall(q, two)) {{fn = sum}}, two
    }}""",
}


def preset_of(name: str, **wanted: object) -> Variant:
    """A preset with those of the knobs that it has."""
    known = {knob.name for knob in find(name).knobs}
    return sparsec.preset(name, **{key: value for key, value in wanted.items() if key in known})


def drawn(variant: Variant, length: int = LENGTH, dtype: str = "float32") -> dict[str, Tensor]:
    known = {n: s for n, s in {**SIZES, "DX": 24}.items() if n in dim_names(variant)}
    return sparsec.inputs(variant, dtype=dtype, device="cpu", seed=0, T=length, **known)


def parts(made: Compiled, x: dict[str, Tensor], start: int, stop: int) -> dict[str, Any]:
    """The inputs of a step; first states are the cache's."""
    spec, first = made.decoder.spec, {held.initial for held in made.decoder.spec.states}
    growing = {*spec.fresh, *(kept.name for kept in spec.kept)} | _mapped(made)
    return {n: y[:, start:stop] if n in growing else y for n, y in x.items() if n not in first}


def _mapped(made: Compiled) -> set[str]:
    """Inputs of what is computed ahead that have tokens."""
    ahead = made.decoder.ahead
    return set() if ahead is None else {n for n, s in ahead.variant.inputs.items() if len(s.shape) > 2}


def first(made: Compiled, x: dict[str, Tensor]) -> dict[str, Tensor]:
    return {n: x[n] for held in made.decoder.spec.states if (n := held.initial) is not None}


def decoded(made: Compiled, cache: Cache, x: dict[str, Tensor], steps: tuple[int, ...]) -> tuple[Tensor, ...]:
    """The outputs of all steps; of last states, those after the last one."""
    found, start = [], cache.known_lengths[0]
    for count in steps:
        out = made.decode(cache, **parts(made, x, start, start + count))
        found.append(out if isinstance(out, tuple) else (out,))
        start += count
    return tuple(xs[-1] if xs[0].dim() == 5 else torch.cat(xs, dim=1) for xs in zip(*found, strict=True))


def forward(made: Compiled, x: dict[str, Tensor]) -> tuple[Tensor, ...]:
    named: dict[str, Any] = dict(x)
    out = made(None, **named)
    return out if isinstance(out, tuple) else (out,)


def in_place(made: Compiled) -> bool:
    """Whether no step copied a bank."""
    built = made.decoder.kept()
    return all(len(x.in_place) == len(made.decoder.spec.states) for x in built) and bool(built)


@pytest.mark.parametrize("knobs", [{}, {"raw": True, "initial": True, "final": True}], ids=["mapped", "raw"])
@pytest.mark.parametrize("name", NAMES)
def test_presets(name: str, knobs: dict[str, object]) -> None:
    made = compile(preset_of(name, **knobs), "interpreter")
    x = drawn(made.variant)
    cache = made.init_cache(2, states=first(made, x), deterministic=True)
    for one, other in zip(decoded(made, cache, x, STEPS), forward(made, x), strict=True):
        assert torch.equal(one, other)
    assert in_place(made) and cache.known_lengths == (LENGTH, LENGTH)


LEVELS: dict[str, dict[str, object]] = {
    "what the recall lacks": {"levels": 3},
    "what the prediction lacks": {"levels": 2, "left": "pre", "clip": 0.0},
    "a softmax over levels": {"levels": 3, "readout": "state_softmax"},
}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", LEVELS)
def test_levels(name: str, dtype: str) -> None:
    """Masses of keys are states too."""
    knobs: dict[str, Any] = {"parts": 1, "branching": 1, "readout": "sum", **LEVELS[name]}
    made = compile(sparsec.preset("rsa", **knobs), "interpreter")
    x = drawn(made.variant, dtype=dtype)
    cache = made.init_cache(2, deterministic=True)
    for one, other in zip(decoded(made, cache, x, STEPS), forward(made, x), strict=True):
        assert torch.equal(one, other)
    assert in_place(made)


@pytest.mark.parametrize("name", RECURRENT)
def test_rules(name: str) -> None:
    made = compile(parse(RECURRENT[name]), "interpreter")
    x = draw(made.variant, {**SIZES, "T": LENGTH})
    cache = made.init_cache(2, states=first(made, x), deterministic=True)
    for one, other in zip(decoded(made, cache, x, STEPS), forward(made, x), strict=True):
        assert torch.equal(one, other)
    assert in_place(made)


@pytest.mark.parametrize("name", ["gdn", "kda", "rwkv7", "mamba2"])
def test_compiled_for_this_cpu(name: str) -> None:
    made = compile(preset_of(name, raw=True, initial=True, final=True), "tvm:llvm")
    x = drawn(made.variant)
    cache = made.init_cache(2, states=first(made, x), deterministic=False)
    outputs = decoded(made, cache, x, STEPS)
    for one, right in zip(outputs, oracle(made.variant, x, form="vector"), strict=True):
        verdict = check(one, right, "float32", "o")
        assert verdict, verdict.sentence
    assert in_place(made)


@pytest.mark.parametrize("name", MIXED)
def test_states_beside_tokens(name: str) -> None:
    made = compile(parse(MIXED[name]), "interpreter")
    x = drawn(made.variant)
    cache = made.init_cache(2, 48, page=16, step=8, deterministic=True)
    for one, other in zip(decoded(made, cache, x, STEPS), forward(made, x), strict=True):
        assert torch.equal(one, other)


REPLAYED = {**{name: text for name, text in MIXED.items() if "map" not in text}, **RECURRENT}


@pytest.mark.parametrize("name", REPLAYED)
def test_what_the_cache_holds_is_all_that_a_step_needs(name: str) -> None:
    """Steps on what is kept, in fp64, are one forward."""
    variant = parse(REPLAYED[name])
    streamed, x = stream(run(variant)), drawn(variant)
    truth = oracle(variant, x, form="vector")
    kept = {k.name: (k.window, k.sinks, k.unit) for k in streamed.spec.kept}
    given = x | {twin: x[name] for twin, name in streamed.twins.items()}
    found = replay(streamed.variant, given, STEPS, kept, states=streamed.spec.states)[: streamed.outputs]
    for one, right in zip(found, truth if isinstance(truth, tuple) else (truth,), strict=True):
        torch.testing.assert_close(one, right, rtol=1e-9, atol=1e-9)


def begun(**knobs: object) -> tuple[Compiled, dict[str, Tensor], Cache, Tensor]:
    """A recurrence, its tokens, a cache of the first 20 of them, and all outputs."""
    made = compile(preset_of("gdn", raw=True, **knobs), "interpreter")
    x = drawn(made.variant)
    cache = made.init_cache(2, states=first(made, x), deterministic=True)
    decoded(made, cache, x, (20,))
    return made, x, cache, forward(made, x)[0]


def test_a_refused_draft_leaves_no_trace() -> None:
    made, x, cache, whole = begun()
    before = cache.snapshot()
    draft = {n: -y for n, y in x.items() if n != "g"} | {"g": x["g"]}
    for _ in range(2):
        decoded(made, cache, draft, (4,))
        cache.restore(before)
    assert cache.known_lengths == (20, 20)
    assert torch.equal(decoded(made, cache, x, (3, 1))[0], whole[:, 20:24])
    with pytest.raises(InputError, match="snapshot"):
        cache.rewind(1)


def test_a_snapshot_of_other_states_is_refused() -> None:
    made, x, cache, _ = begun()
    before = cache.snapshot()
    other = compile(preset_of("kda", raw=True), "interpreter")
    with pytest.raises(InputError, match="snapshot: of gdn: this is a cache of another declaration, kda"):
        other.init_cache(2).restore(before)
    with pytest.raises(InputError, match=r"holds no states before its first tokens.*had tokens of these sizes"):
        made.init_cache(2, states=first(made, x)).restore(before)
    (name,) = before.states
    wrong = replace(before, states={name: before.states[name].half()})
    with pytest.raises(InputError, match=rf"{name} torch.float16.*the cache holds {name} torch.float32"):
        cache.restore(wrong)


def test_a_draft_over_states_and_tokens() -> None:
    made = compile(parse(MIXED["state and window"]), "interpreter")
    x = drawn(made.variant)
    cache = made.init_cache(2, 48, page=16, step=8, deterministic=True)
    decoded(made, cache, x, (20,))
    before = cache.snapshot()
    decoded(made, cache, {n: -y if n != "g" else y for n, y in x.items()}, (5,))
    cache.restore(before)
    later = cache.snapshot()
    assert torch.equal(decoded(made, cache, x, (11,))[0], forward(made, x)[0][:, 20:])
    with pytest.raises(InputError, match="rings keep what 8 tokens replace"):
        cache.restore(before)
    cache.free()
    with pytest.raises(InputError, match="snapshot: outdated"):
        cache.restore(later)


def test_sequences_join_a_running_batch() -> None:
    """A row that ends begins anew from the first states, while the other goes on."""
    made, x, cache, whole = begun(initial=True)
    row = cache.sequences(1)
    row.free()
    again = {n: y[1:] for n, y in x.items()}
    assert cache.known_lengths == (20, 0)
    assert torch.equal(decoded(made, row, again, (7,))[0], whole[1:, :7])
    step = {n: torch.cat([y[:1, 20:24], y[1:, 7:11]]) for n, y in x.items() if n != "m"}
    out = made.decode(cache, **step)
    assert isinstance(out, Tensor)
    assert torch.equal(out[0], whole[0, 20:24]) and torch.equal(out[1], whole[1, 7:11])


def test_a_cache_may_begin_with_one_of_its_sequences() -> None:
    made = compile(preset_of("gdn", raw=True, initial=True), "interpreter")
    x = drawn(made.variant)
    cache = made.init_cache(2, states=first(made, x), deterministic=True)
    one = {n: y[1:] for n, y in x.items()}
    assert torch.equal(decoded(made, cache.sequences(1), one, (7,))[0], forward(made, x)[0][1:, :7])
    assert torch.equal(cache.sequences(0).states["m_written"], x["m"][:1])


def test_a_prompt_is_read_once_for_many() -> None:
    made, x, cache, whole = begun()
    one = cache.sequences(0)
    both = made.init_cache(3, deterministic=True)
    decoded(made, both, {n: torch.cat([y, y[:1]]) for n, y in x.items()}, (1,))
    for n in range(3):
        both.sequences(n).restore(one.snapshot())
    tokens = {n: y[:1].expand(3, *y.shape[1:]) for n, y in x.items()}
    out = decoded(made, both, tokens, (4,))[0]
    assert torch.equal(out, whole[:1, 20:24].expand_as(out))


def test_last_states_are_those_of_their_step() -> None:
    """They are copies, which later steps leave alone."""
    made = compile(preset_of("gdn", raw=True, final=True), "interpreter")
    x = drawn(made.variant)
    cache = made.init_cache(2, deterministic=True)
    _, early = decoded(made, cache, x, (20,))
    kept = early.clone()
    decoded(made, cache, x, (4,))
    assert torch.equal(early, kept)
    assert not torch.equal(early, cache.states["m_written"])


def test_misuse() -> None:
    made = compile(preset_of("gdn", raw=True, initial=True), "interpreter")
    x = drawn(made.variant)
    with pytest.raises(InputError, match=r"m: missing.*init_cache\(states"):
        made.init_cache(2)
    with pytest.raises(InputError, match="first states m"):
        made.init_cache(2, states={"h": x["m"]})
    cache = made.init_cache(2, states={"m": x["m"][:, 0]})
    with pytest.raises(InputError, match=r"m: .*first states are float32"):
        made.decode(cache, **parts(made, x, 0, 1))
    cache = made.init_cache(2, states={"m": x["m"]})
    with pytest.raises(InputError, match="m: given with a step"):
        made.decode(cache, **{n: y[:, :1] for n, y in x.items()})
    kept = compile(parse(MIXED["state and window"]), "interpreter")
    with pytest.raises(InputError, match="max_length: max_length = None"):
        kept.init_cache(2)
    twice = parse(f"variant twice({HEAD}) {{ return recall(q, write({FAR}, k, v)) }}")
    with pytest.raises(DeclarationError, match="written twice"):
        stream(twice)
