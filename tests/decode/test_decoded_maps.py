"""Decoding with maps: new keys go through them once and are kept so; steps equal one forward bit for bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from sparsec.frontends.text import parse
from sparsec.ir.error import DeclarationError, InputError
from sparsec.ir.variant import Variant
from sparsec.runtime.compiled import Compiled, compile
from sparsec.runtime.decode.cache_state import Cache
from sparsec.runtime.decode.explain import describe
from sparsec.runtime.inputs import inputs

LENGTH, STEPS = 67, (40, 1, 1, 3, 22)
SIZES = {"B": 2, "H": 4, "HKV": 2, "D": 32, "DV": 48, "M": 5}
BASE = "q: [B,T,H,D], k: [B,T,HKV,D], v: [B,T,HKV,DV]"
NEAR = "mask(m) {where = (j <= i) & (j > i - 16)}"
BODIES: dict[str, tuple[str, str]] = {
    "queries, keys, output": (
        f"{BASE}, x: [B,T,H,DV], w: [H,1]",
        f"""unit = map(k) {{row = l2norm}}
        m = tokens(unit, v)
        o = attend(map(map(q) {{row = l2norm}}, w) {{fn = x0 * x1}}, m, {NEAR}) {{scale = 1.0}}
        y = map(o, x) {{fn = x0 * sigmoid(x1)}}""",
    ),
    "one tensor for both": (
        "x: [B,T,H,D], v: [B,T,H,DV]",
        f"""m = tokens(map(x) {{row = l2norm}}, v)
        y = attend(map(x) {{fn = tanh(x0)}}, m, {NEAR})""",
    ),
    "keys as they are, too": (
        BASE,
        f"""unit = map(k) {{row = l2norm}}
        n = tokens(unit, v)
        m = tokens(k, v)
        y = merge(attend(q, m, {NEAR}), attend(q, n, mask(n) {{where = j <= i}})) {{fn = sum}}""",
    ),
    "chunks": (
        BASE,
        """m = tokens(map(k) {row = l2norm}, v) {chunk = 16}
        s = reduce(score(q, summary(m) {size = 16, stride = 16})) {over = group}
        t = topk(s) {k = 3, size = 16, eligible = c * 16 <= i, forced = c == i // 16}
        y = attend(q, m, t, mask(m) {where = j <= i})""",
    ),
    "captured": (
        f"{BASE}, g: [H] float32",
        f"""m = tokens(k, v)
        slope = map(g) {{fn = -exp(x0)}}
        y = attend(q, m, {NEAR}, slope = slope) {{bias = score + slope[h] * (i - j)}}""",
    ),
    "running sums": (
        f"{BASE}, f: [B,T,H] float32",
        """m = tokens(k, v) {chunk = 16}
        fade = prefix(map(f) {fn = -exp(x0)})
        t = topk(score(q, summary(m) {size = 16, stride = 16})) {k = 3, size = 16, scope = head,
                 eligible = c * 16 <= i, forced = c == i // 16}
        y = attend(q, m, t, mask(m) {where = j <= i}, fade = fade) {bias = score + fade[b, i, h] - fade[b, j, h]}""",
    ),
    "slots": (
        f"{BASE}, a: [M,HKV,D], b: [M,HKV,DV], w: [HKV,1]",
        f"""m = tokens(k, v)
        n = slots(map(map(a) {{row = l2norm}}, w) {{fn = x0 * x1}}, b)
        y = merge(attend(q, m, {NEAR}) {{scale = 1.0}}, attend(q, n) {{scale = 1.0}}) {{fn = lse}}""",
    ),
}


def variant(name: str) -> Variant:
    """A variant by the name of what its maps are of."""
    declared, body = BODIES[name]
    return parse(f"variant x({declared}) {{\n{body}\n return y\n}}")


def draw(made: Variant, dtype: str) -> dict[str, Tensor]:
    """Inputs of all tokens."""
    used = {str(dim) for node in made.parameters for dim in node.shape}
    sizes: dict[str, Any] = {n: s for n, s in SIZES.items() if n in used}
    return inputs(made, dtype=dtype, device="cpu", seed=0, T=LENGTH, **sizes)


def rows(given: dict[str, Tensor], start: int, stop: int) -> dict[str, Tensor]:
    """The inputs of a step."""
    return {n: x[:, start:stop] if x.dim() > 1 and x.shape[1] == LENGTH else x for n, x in given.items()}


def decoded(made: Compiled, cache: Cache, given: dict[str, Tensor]) -> Tensor:
    """The outputs of all steps."""
    found, start = [], 0
    for count in STEPS:
        out = made.decode(cache, **rows(given, start, start + count))
        assert isinstance(out, Tensor)
        found.append(out)
        start += count
    return torch.cat(found, dim=1)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", BODIES)
def test_steps_equal_one_forward(name: str, dtype: str) -> None:
    made, given = compile(variant(name), "interpreter"), draw(variant(name), dtype)
    cache = made.init_cache(2, 96, page=16, step=8, deterministic=True)
    whole = made(None, **given)
    assert isinstance(whole, Tensor) and torch.equal(decoded(made, cache, given), whole)


def test_the_cache_holds_what_maps_make() -> None:
    spec = compile(variant("queries, keys, output"), "interpreter").decoder.spec
    assert [k.name for k in spec.kept] == ["v", "unit"] and set(spec.fresh) == {"q", "x"}
    both = compile(variant("keys as they are, too"), "interpreter").decoder.spec
    assert [k.name for k in both.kept] == ["k", "v", "unit"]


def test_an_input_of_a_map_that_is_missing_is_named() -> None:
    made, given = (
        compile(variant("queries, keys, output"), "interpreter"),
        draw(variant("queries, keys, output"), "float32"),
    )
    cache = made.init_cache(2, 96, page=16)
    with pytest.raises(InputError, match="k"):
        made.decode(cache, **{n: x for n, x in rows(given, 0, 4).items() if n != "k"})
    with pytest.raises(InputError, match="z: not an input"):
        made.decode(cache, **rows(given, 0, 4), z=given["q"])


def test_keys_made_of_an_output_are_refused() -> None:
    text = f"""variant x({BASE}) {{
      m = tokens(k, v)
      o = attend(q, m, {NEAR})
      n = tokens(map(o) {{row = l2norm}}, o)
      y = attend(q, n, mask(n) {{where = j <= i}})
      return y
    }}"""
    made = compile(parse(text.replace("HKV", "H").replace("DV", "D")), "interpreter")
    with pytest.raises(DeclarationError, match="remembers what states or attention leave"):
        made.init_cache(2, 96)


def test_a_step_in_words_tells_what_runs_ahead() -> None:
    made = compile(variant("queries, keys, output"), "interpreter")
    lines = describe(made, {"B": 1, "T": 64, "H": 4, "HKV": 2, "D": 32, "DV": 48}, "bfloat16").splitlines()
    assert "  map_unit: of the new tokens, before they join the cache" in lines
    assert any(line.startswith("  bytes of a sequence of 64 tokens") for line in lines)
