"""Corners of state memories that were once wrong: routers that are sure, given routes, residuals as they are."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import sparsec
from sparsec.ir.error import DeclarationError, InputError
from sparsec.oracle import oracle
from sparsec.passes.pipeline import run
from sparsec.passes.stream import stream
from sparsec.plan.plan import PlanError
from sparsec.runtime.compiled import compile
from sparsec.testing.whole.chain import links
from sparsec.testing.whole.trained import wrong_on

HEAD = "q: [B,T,H,D], k: [B,T,HKV,D], v: [B,T,HKV,DV], beta: [B,T,HKV] float32"
SIZES = {"B": 2, "T": 9, "H": 2, "HKV": 1, "D": 16, "DV": 8}


def drawn(variant: Any, **more: int) -> dict[str, Tensor]:
    return sparsec.inputs(variant, dtype="float32", device="cpu", seed=0, **{**SIZES, **more})


@pytest.mark.parametrize("routing", ["flat", "tree"])
def test_routers_that_are_sure(routing: str) -> None:
    """Weights that underflow to 0 make no NaN, neither forward nor backward; in a tree all may."""
    layer = sparsec.preset("rsa", levels=3, k=2, readout="sum", routing=routing)
    x = {n: y * 100 if n.startswith("w") else y for n, y in drawn(layer, DX=8).items()}
    found, truth = compile(layer, "interpreter")(**x), oracle(layer, x)
    assert isinstance(found, Tensor) and isinstance(truth, Tensor)
    assert bool(found.isfinite().all())
    if routing == "flat":
        torch.testing.assert_close(found.double(), truth, rtol=1e-4, atol=1e-5)
    leaves = [y.requires_grad_() for y in x.values()]
    again = compile(layer, "interpreter")(**x)
    assert isinstance(again, Tensor)
    grads = torch.autograd.grad(again.sum(), leaves, allow_unused=True)
    assert all(bool(g.isfinite().all()) for g in grads if g is not None)


ROUTED = f"""variant routed({HEAD}, ids: [B,T,1,2] int32, e: [B,T,1,2] float32) {{
  chosen = given(ids) {{unit = part, scope = token}}
  bank = write(state() {{parts = 4}}, k, v, beta=beta, route=chosen, weight=e) {{rule = delta}}
  return recall(q, bank) {{renormalise = false}}
}}"""


@pytest.mark.parametrize(("ids", "words"), [((0, 4), "from -1 to 3"), ((2, 2), "a list is a set")])
@pytest.mark.parametrize("target", ["interpreter", "cpu"])
def test_routes_that_name_no_part_or_one_twice(ids: tuple[int, int], words: str, target: str) -> None:
    layer = sparsec.parse(ROUTED)
    x = drawn(layer) | {"ids": torch.tensor(ids, dtype=torch.int32).expand(2, 9, 1, 2).contiguous()}
    with pytest.raises(InputError, match=words):
        compile(layer, target)(**x)


def test_a_residual_by_weights_as_they_are() -> None:
    layer = sparsec.parse("""variant left(k: [B,T,HKV,D], v: [B,T,HKV,DV], beta: [B,T,HKV] float32,
                                      x: [B,T,1,DX], w: [4,1,DX]) {
      logits = score(x, w) {fn = router, scale = 1.0}
      chosen = topk(logits) {k = 1, unit = part, scope = token, selector_gradient = through_weights}
      e = weights(logits, chosen) {fn = softmax, renormalise = false}
      s = write(state() {parts = 4}, k, v, beta=beta, route=chosen, weight=e) {rule = delta}
      return residual(v, s, k) {mode = post, renormalise = false}
    }""")
    x = sparsec.inputs(layer, dtype="float32", device="cpu", seed=0, B=2, T=9, HKV=2, D=16, DV=8, DX=8)
    assert wrong_on(sparsec.compile(layer, target="interpreter"), x, "float32") == []


def test_masses_of_nothing_have_no_direction() -> None:
    layer = sparsec.preset("rsa", levels=2, parts=1, raw=True)
    x = drawn(layer)
    for n, y in x.items():
        if n.startswith("beta"):
            y[:, 3:] = 0
        if n.startswith("g"):
            y[:, 3] = -90
    found = compile(layer, "interpreter")(**x)
    assert isinstance(found, Tensor) and bool(found.isfinite().all())


def test_memories_of_what_a_state_leaves_are_not_decoded() -> None:
    layer = sparsec.parse(f"""variant leftover({HEAD}) {{
      s = write(state(), k, v, beta=beta) {{rule = delta}}
      m = tokens(k, residual(v, s, k) {{mode = pre}})
      return attend(q, m, mask(m) {{where = j <= i}})
    }}""")
    with pytest.raises(DeclarationError, match="remembers what states or attention leave"):
        stream(run(layer))


def test_a_recall_of_what_nothing_writes() -> None:
    with pytest.raises(DeclarationError, match="reads what tokens write"):
        sparsec.parse("variant x(q: [B,T,H,D]) { return recall(q, state()) }")


def test_parts_without_a_route_are_refused_where_they_are_declared() -> None:
    with pytest.raises(DeclarationError, match=r"parts = 4, no route.*alike are one.*a route: topk"):
        sparsec.parse(f"variant one({HEAD}) {{ return recall(q, write(state() {{parts = 4}}, k, v, beta=beta)) }}")


TWICE = f"""variant twice({HEAD}, w: [B,T,HKV,DV], m: [B,1,HKV,D,DV] float32) {{
  first = state(m)
  a = write(first, k, v, beta=beta) {{rule = delta}}
  b = write(first, k, w)
  return merge(recall(q, a), recall(q, b)) {{fn = sum}}
}}"""


@pytest.mark.parametrize("shape", ["[B,1,HKV,D,DV]", "[1,HKV,D,DV]"])
def test_first_states_of_two_banks(shape: str) -> None:
    """Both banks have a share in the gradient of what they begin at."""
    layer = sparsec.parse(TWICE.replace("[B,1,HKV,D,DV]", shape))
    assert wrong_on(compile(layer, "interpreter"), drawn(layer), "float32") == []


@pytest.mark.parametrize("name", ["rsa", "rsa slots", "gsa", "gdn"])
@pytest.mark.parametrize("form", ["loop", "vector"])
def test_no_tokens_have_no_outputs(name: str, form: Any) -> None:
    layer = sparsec.preset("rsa", readout="slot_softmax") if name == "rsa slots" else sparsec.preset(name)
    more = {n: 4 for n in ("DX", "M") if any(n in str(spec.shape) for spec in layer.inputs.values())}
    truth = oracle(layer, drawn(layer, T=0, **more), form=form)
    assert isinstance(truth, Tensor) and truth.shape == (2, 0, 2, 8)


LEFT = f"""variant left({HEAD}, ids: [B,T,1,1] int32, e: [B,T,1,1] float32) {{
  chosen = given(ids) {{unit = part, scope = token}}
  bank = write(state() {{parts = 4}}, k, v, beta=beta, route=chosen, weight=e) {{rule = delta}}
  return recall(q, bank) {{renormalise = true}}, residual(v, bank, k) {{mode = MODE}}
}}"""


@pytest.mark.parametrize("mode", ["pre", "post"])
def test_one_part_of_weight_nothing_is_read_as_a_whole(mode: str) -> None:
    """e / e is 1 for a part that is alone, though its e be 0 or underflow."""
    layer = sparsec.parse(LEFT.replace("MODE", mode))
    x = drawn(layer)
    x["ids"] = torch.arange(18, dtype=torch.int32).reshape(2, 9, 1, 1) % 2
    x["e"][:, 4:7] = 0
    assert wrong_on(compile(layer, "interpreter"), x, "float32") == []


MERGED = f"""variant merged({HEAD}, x: [B,T,1,DX], w: [4,1,DX]) {{
  logits = score(x, w) {{fn = router, scale = 1.0}}
  chosen = topk(logits) {{k = 2, unit = part, scope = token, selector_gradient = through_weights}}
  e = weights(logits, chosen) {{fn = softmax, renormalise = false}}
  one = write(state(), k, v, beta=beta) {{rule = delta}}
  few = write(state() {{parts = 4}}, k, v, beta=beta, route=chosen, weight=e) {{rule = delta}}
  u = recall(q, READ)
  return u, merge(u, recall(q, OTHER)) {{fn = sum}}
}}"""


@pytest.mark.parametrize(("read", "other", "dtype"), [("few", "one", "bfloat16"), ("one", "few", "float32")])
def test_sums_by_renormalised_weights_are_merged(read: str, other: str, dtype: str) -> None:
    """Also where what is merged is a result, and so rounded."""
    layer = sparsec.parse(MERGED.replace("READ", read).replace("OTHER", other))
    x = sparsec.inputs(layer, dtype=getattr(torch, dtype), device="cpu", seed=0, **SIZES | {"DX": 4, "DV": 16})
    assert wrong_on(compile(layer, "interpreter"), x, dtype) == []


@pytest.mark.parametrize(("read", "other"), [("few", "one"), ("one", "few"), ("few, one", "few")])
def test_weights_that_sum_to_one_divide_nothing(read: str, other: str) -> None:
    """The logarithm of their sum is 0, to which no error can be relative."""
    whole = MERGED.replace("READ", read).replace("OTHER", other).replace("{fn = softmax, renormalise = false}", "")
    layer = sparsec.parse(whole)
    x = sparsec.inputs(layer, dtype="float32", device="cpu", seed=0, **SIZES | {"DX": 4, "DV": 16})
    compiled = compile(layer, "interpreter")
    assert [link.sentence for link in links(compiled, x) if not link.ok] == []
    assert wrong_on(compiled, x, "float32") == []
    assert "row_lse" not in run(layer).text()


def test_renormalising_given_weights_is_refused_in_words() -> None:
    layer = sparsec.parse(ROUTED.replace("renormalise = false", "renormalise = true"))
    x = drawn(layer) | {"ids": torch.tensor([0, 3], dtype=torch.int32).expand(2, 9, 1, 2).contiguous()}
    with pytest.raises(PlanError, match=r"recall `out`: renormalise = true over 2 given parts.*let a router choose"):
        compile(layer, "interpreter")(**x)


def test_softmaxes_over_parts_of_given_lists_are_refused_in_words() -> None:
    """Slots that may be empty are no candidates."""
    layer = sparsec.parse(ROUTED.replace("renormalise = false", "mode = state_softmax"))
    x = drawn(layer) | {"ids": torch.tensor([0, 3], dtype=torch.int32).expand(2, 9, 1, 2).contiguous()}
    with pytest.raises(PlanError, match=r"recall `out`: mode = state_softmax.*chooses 2.*that a router chooses"):
        compile(layer, "interpreter")(**x)
