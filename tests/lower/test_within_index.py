"""Indexers that choose tokens within chunks that were chosen first, and losses of choices within lists."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import sparsec
from sparsec.frontends.text import parse
from sparsec.ir.variant import Variant
from sparsec.lower.registry import space
from sparsec.lower.select.children import ORDER
from sparsec.oracle import check, oracle
from sparsec.plan.plan import Kernel
from sparsec.plan.specs import Selector
from sparsec.runtime.compiled import Compiled
from sparsec.testing.whole.packed import floats, off_the_loop, packed_case
from sparsec.testing.whole.trained import wrong_on

HEAD = (
    "q: [B,TQ,H,D], k: [B,TK,HKV,D], v: [B,TK,HKV,DV], q_index: [B,TQ,HI,DI], k_index: [B,TK,1,DI], w_index: [B,TQ,HI]"
)
SIZES: dict[str, Any] = {"B": 2, "T": 150, "H": 4, "HKV": 2, "D": 16, "DV": 24, "HI": 3, "DI": 16}
SCORED = "{fn = indexer, scale = rsqrt(DI)}"


def layer(chunk: int = 16, gradient: str = "none") -> Variant:
    """The twelve best tokens of the own chunk and of the two best others."""
    loss = ", loss" if gradient == "kl" else ""
    tail = "loss = aux(near, chosen, target=o) {fn = kl}\n  " if loss else ""
    return parse(f"""variant tokens_of_chunks({HEAD}) {{
  memory = tokens(k, v)
  index = tokens(k_index)
  means = summary(index) {{size = {chunk}, stride = {chunk}}}
  far = score(q_index, means, head_weights=w_index) {SCORED}
  above = topk(far) {{k = 3, size = {chunk}, scope = token, eligible = {chunk} * c <= i, forced = c == i // {chunk}}}
  near = score(q_index, index, head_weights=w_index) {SCORED}
  chosen = topk(near, within=above) {{k = 12, unit = token, scope = token, eligible = c <= i, fanout = {chunk},
    selector_gradient = {gradient}}}
  o = attend(q, memory, chosen)
  {tail}return o{loss}
}}""")


def chooser(made: Compiled, x: dict[str, Tensor]) -> Kernel:
    dims, dtype = made.bind(x)
    kernels = made.plan(dims, dtype).kernels
    (found,) = [k for k in kernels if isinstance(k.spec, Selector) and k.spec.parents is not None]
    return found


def wrong(made: Compiled, x: dict[str, Tensor]) -> list[str]:
    """What is off, in sentences."""
    found, want = made(**x), oracle(made.variant, x)
    pairs = zip(
        found if isinstance(found, tuple) else (found,), want if isinstance(want, tuple) else (want,), strict=True
    )
    verdicts = [check(a, b, "float32") for a, b in pairs]
    return [v.sentence for v in verdicts if not v]


@pytest.mark.parametrize("target", ["interpreter", "tvm"])
@pytest.mark.parametrize("chunk", [16, 24, 80])
@pytest.mark.parametrize("order", [ORDER, "one_pass"])
def test_tokens_of_chosen_chunks(chunk: int, order: str, target: str) -> None:
    """Several chunks in a tile, some of its lanes left over, and parts of a chunk; ties go by numbers."""
    made = sparsec.compile(layer(chunk), target=target)
    x = sparsec.inputs(made.variant, **SIZES)
    kernel = chooser(made, x)
    assert order in space(kernel.spec, "triton:sm_90")["order"]
    dims, _ = made.bind(x)
    made.schedules = {kernel.name: replace(made.schedule(kernel, dims), order=order)}
    assert wrong(made, x) == []
    x["w_index"] = torch.zeros_like(x["w_index"])
    assert wrong(made, x) == []


def test_it_walks_the_children_alone_by_default() -> None:
    made = sparsec.compile(layer(), target="tvm")
    kernel = chooser(made, sparsec.inputs(made.variant, **SIZES))
    assert made.schedule(kernel, {"TQ": 150, "TK": 150, "q_offset": 0}).order == ORDER
    dims = {"B": 1, "H": 4, "HKV": 2, "D": 16, "DV": 16, "HI": 4, "DI": 16}
    seconds = []
    for length in (4096, 16384):
        found = made.explain({**dims, "TQ": length, "TK": length})
        seconds += [k.seconds for k in found.kernels if k.name == kernel.name]
    assert seconds[1] < 4.2 * seconds[0]


@pytest.mark.parametrize("target", ["interpreter", "tvm"])
@pytest.mark.parametrize("queries", [1, 5])
def test_its_loss_and_gradients(queries: int, target: str) -> None:
    """Of one query each; of five, whose own scores are compared over the list of the first."""
    shared = f"fanout = 16, query_block = {queries}"
    made = sparsec.compile(parse(str(layer(gradient="kl")).replace("fanout = 16", shared)), target=target)
    x = sparsec.inputs(made.variant, **SIZES)
    assert wrong(made, x) == [] and wrong_on(made, x, "float32") == []


@pytest.mark.parametrize("target", ["interpreter", "tvm"])
def test_a_loss_of_chunks_in_sections(target: str) -> None:
    variant = parse("""variant chunks(q: [B,TQ,H,D], k: [B,TK,HKV,D], v: [B,TK,HKV,DV],
  r: [B,TQ,HKV,D], l: [B,TK,HKV,D]) {
  pages = tokens(k, v) {chunk = 16}
  marks = tokens(l)
  wide = summary(marks) {size = 48, stride = 48}
  far = score(r, wide)
  above = topk(far) {k = 2, size = 48, scope = kv_head, eligible = 48 * c <= i, forced = c == i // 48}
  fine = summary(marks) {size = 16, stride = 16}
  near = score(r, fine)
  chosen = topk(near, within=above) {k = 3, size = 16, scope = kv_head, eligible = 16 * c <= i, fanout = 3,
    selector_gradient = kl}
  o = attend(q, pages, chosen, mask(pages) {where = j <= i})
  loss = aux(near, chosen, target=o) {fn = kl}
  return o, loss
}""")
    made = sparsec.compile(variant, target=target)
    x = sparsec.inputs(variant, B=2, T=150, H=4, HKV=2, D=16, DV=24)
    assert wrong(made, x) == [] and wrong_on(made, x, "float32") == []


@pytest.mark.parametrize("target", ["interpreter", "tvm"])
def test_a_prompt_and_steps_are_one_forward(target: str) -> None:
    made = sparsec.compile(layer(), target=target)
    x = sparsec.inputs(made.variant, **SIZES)
    cache, parts = made.init_cache(batch=2, max_length=192), list[Tensor]()
    for a, b in itertools.pairwise((0, 97, 98, 99, 102, 150)):
        part = made.decode(cache, **{n: t[:, a:b] for n, t in x.items()})
        assert isinstance(part, Tensor)
        parts.append(part)
    want = oracle(made.variant, x)
    assert isinstance(want, Tensor) and check(torch.cat(parts, 1), want, "float32")


def test_packed_documents() -> None:
    made = sparsec.compile(layer(), target="interpreter")
    case = packed_case(made.variant, (70, 0, 1, 37), (70, 0, 1, 37), H=4, HKV=2, D=16, DV=16, HI=2, DI=16)
    assert max(off_the_loop(made, case, floats(made.variant))) < 1e-6


@pytest.mark.parametrize("target", ["interpreter", "tvm"])
@pytest.mark.parametrize("block", [5, 16])
def test_queries_that_share_a_list_of_tokens(block: int, target: str) -> None:
    """A list is its first query's, chosen within that query's chunks; all of the block read it."""
    shared = f"fanout = 16, query_block = {block}"
    made = sparsec.compile(parse(str(layer()).replace("fanout = 16", shared)), target=target)
    x = sparsec.inputs(made.variant, **SIZES)
    assert wrong(made, x) == []
