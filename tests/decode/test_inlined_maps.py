"""Maps of new tokens that scans work out themselves: fewer launches, in fp32 the same bits."""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

import pytest
import torch

import sparsec
from sparsec.frontends.text import parse
from sparsec.ir.variant import Variant, dim_names
from sparsec.runtime.compiled import Compiled, compile
from sparsec.runtime.decode import built

SIZES: dict[str, Any] = {"B": 2, "H": 4, "HKV": 4, "D": 16, "DV": 32, "DX": 40}
STEPS = (9, 1, 1, 3, 1)
CASES: dict[str, tuple[str, dict[str, Any], list[str]]] = {
    "unit keys and rates": ("gdn", {}, ["scan_out"]),
    "a decay of several inputs": ("mamba2", {}, ["scan_out"]),
    "a bound on a decay": ("kda", {}, ["scan_out"]),
    "decays and rates of one head": ("rwkv7", {}, ["scan_out"]),
    "scans after the router": ("sse", {}, ["route_chosen", "scan_out_and_scan_out_2_and_combine_o"]),
}
HEAD = "q: [B,T,H,D], k: [B,T,H,D], v: [B,T,H,DV]"
OTHERS = {
    "a result of the layer": (
        f"""variant x({HEAD}) {{ u = map(k) {{fn = x0 * 0.5}}
          return recall(q, write(state() {{heads = H}}, u, v)), u }}""",
        ["map_u", "scan_out"],
    ),
    "a map of a map": (
        f"""variant x({HEAD}) {{ u = map(k) {{row = l2norm}}
          return recall(q, write(state() {{heads = H}}, map(u, q) {{fn = x0 * sigmoid(x1)}}, v)) }}""",
        ["scan_out"],
    ),
    "read by attention too": (
        f"""variant x({HEAD}) {{ u = map(q) {{row = l2norm}}  m = tokens(k, v)
          near = attend(u, m, mask(m) {{where = j <= i}})
          return merge(recall(u, write(state() {{heads = H}}, k, v)), near) {{fn = sum}} }}""",
        ["map_u", "attend_near_parts", "scan_out", "combine_out_2"],
    ),
}


def outputs(variant: Variant) -> tuple[list[torch.Tensor], list[str]]:
    """What steps give, and the launches of a step of one token."""
    made = compile(variant, "interpreter")
    sizes = {n: s for n, s in SIZES.items() if n in dim_names(variant)}
    x = sparsec.inputs(variant, seed=0, T=sum(STEPS), **sizes)
    growing = {n for n, s in variant.inputs.items() if len(s.shape) > 1 and str(s.shape[1]) == "T"}
    cache, found, start = made.init_cache(2, 32, deterministic=False), list[torch.Tensor](), 0
    for count in STEPS:
        step: dict[str, Any] = {n: y[:, start : start + count] if n in growing else y for n, y in x.items()}
        out = made.decode(cache, **step)
        found.append(out[0] if isinstance(out, tuple) else out)
        start += count
    return found, launches(made)


def launches(made: Compiled) -> list[str]:
    return [launch.step.program.name for launch in made.decoder.kept()[-1].launches]


@pytest.mark.parametrize("case", [*CASES, *OTHERS])
def test_fewer_launches_and_the_same_bits(case: str) -> None:
    if case in CASES:
        design, knobs, expected = CASES[case]
        variant = sparsec.preset(design, **knobs)
    else:
        text, expected = OTHERS[case]
        variant = parse(text)
    found, names = outputs(variant)
    assert names == expected
    with patch.object(built, "worked_out", lambda kernels, outputs: {}):
        apart, more = outputs(variant)
    assert len(more) > len(names) or names[0].startswith("map")
    for one, other in zip(found, apart, strict=True):
        assert torch.equal(one, other)
