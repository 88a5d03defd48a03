"""Chunks that are chosen within lists of larger ones: retrieval through three levels and more."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import sparsec
from sparsec.frontends.text import parse
from sparsec.ir.error import DeclarationError
from sparsec.ir.variant import Variant
from sparsec.lower.decode import schedules as steps
from sparsec.lower.decode.company import SHARED
from sparsec.lower.registry import default, space
from sparsec.oracle import check, oracle
from sparsec.plan.specs import Selector
from sparsec.runtime.compiled import Compiled
from sparsec.testing.whole.packed import floats, off_the_loop, packed_case
from sparsec.testing.whole.trained import wrong_on
from sparsec.tile.work import work

HEAD = "q: [B,TQ,H,D], k: [B,TK,HKV,D], v: [B,TK,HKV,DV]"
SIZES: dict[str, Any] = {"B": 2, "T": 300, "H": 6, "HKV": 2, "D": 16, "DV": 24}


def marks(name: str, size: int) -> str:
    """Scores of chunks by their mean keys and the mean of the group."""
    return (
        f"m_{name} = summary(pages) {{size = {size}, stride = {size}}}\n  s_{name} = score(q, m_{name})\n"
        f"  {name} = reduce(s_{name}) {{over = group, op = mean}}\n  "
    )


PAGES = "pages = tokens(k, v) {chunk = 16}\n  "
COARSE = marks("far", 64) + (
    "above = topk(far) {k = 2, size = 64, scope = kv_head, eligible = 64 * c <= i, forced = c == i // 64}\n  "
)
FINE = "{k = 3, size = 16, scope = kv_head, eligible = 16 * c + 15 <= i, fanout = 4, order = newest, "
ATTEND = "w = weights(near, chosen) {fn = stick}\n  return attend(q, pages, chosen, weights=w) {per = chunk}"
LAYERS = {
    "three levels": PAGES
    + COARSE
    + marks("near", 16)
    + f"chosen = topk(near, within=above) {FINE} selector_gradient = through_weights}}\n  "
    + ATTEND,
    "four levels": PAGES
    + marks("top", 128)
    + "first = topk(top) {k = 1, size = 128, scope = kv_head, eligible = 128 * c + 127 <= i}\n  "
    + marks("far", 64)
    + "above = topk(far, within=first) {k = 1, size = 64, scope = kv_head, eligible = 64 * c + 63 <= i, fanout = 2}\n  "
    + marks("near", 16)
    + f"chosen = topk(near, within=above) {FINE} selector_gradient = through_weights}}\n  "
    + ATTEND,
    "lists of heads": PAGES
    + COARSE
    + "m = summary(pages) {size = 16, stride = 16}\n  near = score(q, m)\n  "
    + "chosen = topk(near, within=above) {k = 3, size = 16, scope = head, eligible = 16 * c + 15 <= i, fanout = 4}\n  "
    + "return attend(q, pages, chosen)",
    "the own chunk may be left out": PAGES
    + marks("far", 64)
    + "above = topk(far) {k = 2, size = 64, scope = kv_head, eligible = 64 * c + 63 <= i}\n  "
    + marks("near", 16)
    + "chosen = topk(near, within=above) {k = 3, size = 16, scope = kv_head, eligible = 16 * c <= i,\n"
    + "    forced = c == i // 16, fanout = 4}\n  return attend(q, pages, chosen, mask(pages) {where = j <= i})",
    "shares of a softmax": PAGES
    + COARSE
    + "m = summary(pages) {size = 16, stride = 16}\n  raw = score(q, m)\n  "
    + "near = reduce(raw) {over = group, op = sum, pre = softmax, visible = 16 * c + 15 <= i}\n  "
    + "chosen = topk(near, within=above) {k = 3, size = 16, scope = kv_head, eligible = 16 * c + 15 <= i,\n"
    + "    fanout = 4}\n  return attend(q, pages, chosen)",
    "weights over all that is eligible": PAGES
    + COARSE
    + marks("near", 16)
    + "chosen = topk(near, within=above) {k = 3, size = 16, scope = kv_head, eligible = 16 * c + 15 <= i, fanout = 4,\n"
    + "    selector_gradient = through_weights}\n  w = weights(near, chosen) {fn = softmax, renormalise = false}\n  "
    + "return attend(q, pages, chosen, weights=w) {per = chunk}",
}


def layer(name: str, flat: bool = False, word: str = "", other: str = "") -> Variant:
    """A layer, or the same whose last list knows no level above; ``word`` may be another."""
    body = LAYERS[name]
    if flat:
        body = body.replace("topk(near, within=above)", "topk(near)").replace("fanout = 4", "query_block = 1")
    body = body.replace(word, other) if word else body
    return parse(f"variant levels({HEAD}) {{\n  {body}\n}}")


def result(made: Compiled, x: dict[str, Tensor]) -> Tensor:
    found = made(**x)
    assert isinstance(found, Tensor)
    return found


def chooses_within(spec: object) -> bool:
    return isinstance(spec, Selector) and spec.parents is not None


def truth(variant: Variant, x: dict[str, Tensor]) -> Tensor:
    found = oracle(variant, x)
    assert isinstance(found, Tensor)
    return found


@pytest.mark.parametrize("target", ["interpreter", "tvm"])
@pytest.mark.parametrize("name", LAYERS)
def test_outputs_and_gradients(name: str, target: str) -> None:
    variant = layer(name)
    x, made = sparsec.inputs(variant, **SIZES), sparsec.compile(variant, target=target)
    want = truth(variant, x)
    assert check(result(made, x), want, "float32")
    assert wrong_on(made, x, "float32") == []
    alike = want.isclose(truth(layer(name, flat=True), x)).all(-1).float().mean()
    assert 0 < alike < 0.95, "some rows choose as they would without levels, not all"


@pytest.mark.parametrize(
    ("name", "orders"),
    [
        ("lists of heads", ("one_pass", "rounds", "children")),
        ("the own chunk may be left out", ("one_pass", "rounds", "children")),
        ("shares of a softmax", ("two_pass", "apart", "children")),
    ],
)
def test_every_order_chooses_alike(name: str, orders: tuple[str, ...]) -> None:
    variant = layer(name)
    made, x = sparsec.compile(variant, target="interpreter"), sparsec.inputs(variant, **SIZES)
    dims, dtype = made.bind(x)
    (chooser,) = [k for k in made.plan(dims, dtype).kernels if chooses_within(k.spec)]
    assert {*orders} <= {*space(chooser.spec, "triton:sm_90")["order"]}
    for order in orders:
        made.schedules = {chooser.name: replace(made.schedule(chooser, dims), order=order)}
        assert check(result(made, x), truth(variant, x), "float32")


def chosen_alone(made: Compiled, x: dict[str, Tensor], rows: int, block: int, order: str = "children") -> Tensor:
    """Outputs of a layer whose last list is made in tiles of this size."""
    dims, dtype = made.bind(x)
    (chooser,) = [k for k in made.plan(dims, dtype).kernels if chooses_within(k.spec)]
    made.schedules = {chooser.name: replace(made.schedule(chooser, dims), order=order, rows=rows, block=block)}
    return result(made, x)


@pytest.mark.parametrize("target", ["interpreter", "tvm"])
@pytest.mark.parametrize(("fanout", "size"), [(4, 64), (3, 48), (20, 320)])
@pytest.mark.parametrize(("rows", "block"), [(1, 32), (16, 8)])
def test_children_alone(fanout: int, size: int, rows: int, block: int, target: str) -> None:
    """Whole parents in a tile, some lanes of it left over, and parts of a parent."""
    text = str(layer("lists of heads")).replace("64", str(size)).replace("fanout = 4", f"fanout = {fanout}")
    variant = parse(text)
    made, x = sparsec.compile(variant, target=target), sparsec.inputs(variant, **{**SIZES, "T": 701})
    assert check(chosen_alone(made, x, rows, block), truth(variant, x), "float32")


@pytest.mark.parametrize("target", ["interpreter", "tvm"])
@pytest.mark.parametrize("name", ["three levels", "lists of heads", "the own chunk may be left out"])
def test_children_of_equal_scores_go_by_their_numbers(name: str, target: str) -> None:
    """Parents are listed by rank, the last own one first: their children are no ascending numbers."""
    variant = layer(name)
    x = sparsec.inputs(variant, **SIZES)
    x["k"] = torch.zeros_like(x["k"])
    made = sparsec.compile(variant, target=target)
    assert check(chosen_alone(made, x, 8, 8), truth(variant, x), "float32")


def test_cosines_maxima_and_sums_of_children() -> None:
    """What becomes of a score, where every row has keys of its own."""
    for word, other in [
        ("score(q, m_near)", "score(q, m_near) {fn = cosine}"),
        ("op = mean", "op = max"),
        ("op = mean", "op = sum"),
    ]:
        body = LAYERS["the own chunk may be left out"].replace(word, other)
        variant = parse(f"variant levels({HEAD}) {{\n  {body}\n}}")
        made, x = sparsec.compile(variant, target="interpreter"), sparsec.inputs(variant, **SIZES)
        assert check(chosen_alone(made, x, 4, 8), truth(variant, x), "float32")


def test_a_list_costs_its_children() -> None:
    """Useful work, and that of the program, do not grow with the length once there are more units."""
    variant = layer("three levels")
    found = {}
    for length in (16384, 65536):
        made = sparsec.compile(variant, target="tvm")
        dims = {"B": 1, "TQ": length, "TK": length, "H": 6, "HKV": 2, "D": 16, "DV": 16}
        (chooser,) = [k for k in made.explain(dims).kernels if "chosen" in k.name and k.kind == "Selector"]
        found[length] = chooser
    short, long = found[16384], found[65536]
    assert long.formulas["pairs"][1] == 4 * short.formulas["pairs"][1] == 65536 * 2 * 2 * 4
    assert long.seconds < 4.1 * short.seconds


def test_a_step_scores_the_children_alone() -> None:
    """Splits of a step's candidates are splits of the children, one where a tile holds them."""
    made = sparsec.compile(layer("three levels"), target="interpreter")
    plan = made.plan({**SIZES, "TQ": 300, "TK": 300, "q_offset": 0}, "float32")
    (chooser,) = [k for k in plan.kernels if chooses_within(k.spec)]
    assert isinstance(chooser.spec, Selector) and chooser.spec.parents is not None
    own = steps.schedule(chooser.spec, default(chooser.spec, "triton:sm_90"), processors=132, batch=1)
    assert (own.order, own.splits, own.block) == (SHARED, 1, 16)
    many = replace(chooser.spec, parents=replace(chooser.spec.parents, slots=64, fanout=16))
    assert steps.schedule(many, default(many, "triton:sm_90"), processors=132, batch=1).splits == 16
    program = steps.lower(chooser.spec, own).steps[0].program
    assert chooser.spec.parents.ids in [t.name for t in program.tensors]
    scored = work(program, {"B": 1, "TQ": 1, "TK": 4096, "q_offset": 4095, "N": 256, "NB": 256})
    assert scored.ranked == 2 * 16


@pytest.mark.parametrize("name", ["three levels", "lists of heads"])
def test_packed_documents(name: str) -> None:
    made = sparsec.compile(layer(name), target="interpreter")
    case = packed_case(made.variant, (130, 0, 1, 67), (130, 0, 1, 67), H=6, HKV=2, D=16, DV=16)
    assert max(off_the_loop(made, case, floats(made.variant))) < 1e-6


@pytest.mark.parametrize("target", ["interpreter", "tvm"])
@pytest.mark.parametrize("name", ["three levels", "four levels", "lists of heads"])
def test_a_prompt_and_steps_are_one_forward(name: str, target: str) -> None:
    made, ends = sparsec.compile(layer(name), target=target), (0, 190, 191, 192, 195, 196, 270)
    x = sparsec.inputs(made.variant, **{**SIZES, "T": 270})
    cache, parts = made.init_cache(batch=2, max_length=320), list[Tensor]()
    for a, b in itertools.pairwise(ends):
        part = made.decode(cache, **{n: t[:, a:b] for n, t in x.items()})
        assert isinstance(part, Tensor)
        parts.append(part)
    assert check(torch.cat(parts, 1), truth(made.variant, x), "float32")


@pytest.mark.parametrize("target", ["interpreter", "tvm"])
@pytest.mark.parametrize(("above", "below"), [(4, 1), (1, 4), (32, 8), (3, 5)])
def test_lists_that_queries_share(above: int, below: int, target: str) -> None:
    """Above, below and on both levels: a list is that of the first query of its block, and within that query's."""
    text = str(layer("the own chunk may be left out"))
    text = text.replace("fanout = 4", f"fanout = 4, query_block = {below}")
    text = text.replace("size = 64, scope", f"size = 64, query_block = {above}, scope")
    made = sparsec.compile(parse(text), target=target)
    x = sparsec.inputs(made.variant, **SIZES)
    assert check(result(made, x), truth(made.variant, x), "float32")
    if target == "interpreter":
        for order, rows in (("one_pass", 16), ("rounds", 16), ("children", 1)):
            assert check(chosen_alone(made, x, rows, 16, order), truth(made.variant, x), "float32")
        case = packed_case(made.variant, (130, 0, 1, 67), (130, 0, 1, 67), H=6, HKV=2, D=16, DV=16)
        assert max(off_the_loop(made, case, floats(made.variant))) < 1e-6


def test_weights_of_lists_that_queries_share_within_others() -> None:
    made = sparsec.compile(layer("three levels", word="fanout = 4", other="fanout = 4, query_block = 4"), "interpreter")
    x = sparsec.inputs(made.variant, **SIZES)
    assert check(result(made, x), truth(made.variant, x), "float32")


def test_steps_of_lists_that_queries_share_are_refused_in_a_sentence() -> None:
    coarse = sparsec.compile(layer("three levels", word="size = 64, sc", other="size = 64, query_block = 4, sc"), "tvm")
    with pytest.raises(DeclarationError, match="shares a list between queries"):
        coarse.init_cache(batch=1, max_length=64)


def test_a_choice_without_levels_reads_no_list() -> None:
    variant = layer("three levels", flat=True)
    plan = sparsec.compile(variant, target="interpreter").plan(
        {**SIZES, "TQ": 300, "TK": 300, "q_offset": 0}, "float32"
    )
    (chooser,) = [k for k in plan.kernels if isinstance(k.spec, Selector)]
    assert not chooses_within(chooser.spec) and not any("above" in name for name in chooser.reads)
