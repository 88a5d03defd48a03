"""The meaning of ``vjp``: autograd of the primal alone, given the values of its direct sources."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sparsec.frontends.text import parse
from sparsec.ir.variant import Variant
from sparsec.oracle import OracleError, evaluate, evaluate_node, oracle, oracle_rows
from sparsec.oracle.form import FormName
from sparsec.oracle.truth import evaluation
from sparsec.oracle.values import Output
from sparsec.runtime.inputs import inputs

HEAD = "variant x(q: [B,TQ,H,D], k: [B,TK,HKV,D], v: [B,TK,HKV,DV], do: [B,TQ,H,DV]"
ATTEND = (
    HEAD
    + """, dl: [B,TQ,H], sink: [H], slopes: [H]) {
  m = tokens(k, v)
  o = attend(q, m, mask(m) {where = (j <= i) & (j > 0)}, sink=sink, slopes=slopes) {
    bias = score - slopes[h] * (i - j), sink = given}
  return vjp(o, do, lse_grad=dl) {of = q}, vjp(o, do, lse_grad=dl) {of = k}, vjp(o, do, lse_grad=dl) {of = v},
         vjp(o, do, lse_grad=dl) {of = sink}, vjp(o, do, lse_grad=dl) {of = capture, capture = slopes}
}"""
)
FORMS: list[FormName] = ["loop", "vector"]


def draw(variant: Variant) -> dict[str, Tensor]:
    names = {str(dim) for spec in variant.inputs.values() for dim in spec.shape}
    sizes = {"B": 2, "TQ": 4, "TK": 6, "H": 4, "HKV": 2, "D": 3, "DV": 2}
    made = inputs(variant, seed=1, **{n: s for n, s in sizes.items() if n in names})  # type: ignore[arg-type]
    return {name: x.double() for name, x in made.items()}


def closed_form(x: dict[str, Tensor]) -> list[Tensor]:
    """Softmax attention backward by its formulas (p, dp, delta), written without autograd."""
    scale, group = 3**-0.5, 2
    k, v = (x[name].repeat_interleave(group, 2) for name in ("k", "v"))
    i, j = 2 + torch.arange(4)[:, None], torch.arange(6)
    s = torch.einsum("bthd,bnhd->bhtn", x["q"], k) * scale - x["slopes"][:, None, None] * (i - j)
    power = torch.where((j <= i) & (j > 0), s.exp(), 0.0)
    rest = x["sink"].exp()[:, None, None]
    p = power / (power.sum(-1, keepdim=True) + rest)
    o = torch.einsum("bhtn,bnhe->bthe", p, v)
    delta = ((o * x["do"]).sum(-1) - x["dl"]).transpose(1, 2)[..., None]
    ds = p * (torch.einsum("bthe,bnhe->bhtn", x["do"], v) - delta)
    dq = torch.einsum("bhtn,bnhd->bthd", ds, k) * scale
    dk = torch.einsum("bhtn,bthd->bnhd", ds, x["q"]).unflatten(2, (2, group)).sum(3) * scale
    dv = torch.einsum("bhtn,bthe->bnhe", p, x["do"]).unflatten(2, (2, group)).sum(3)
    dsink = -(rest / (power.sum(-1, keepdim=True) + rest) * delta).sum((0, 2, 3))
    return [dq, dk, dv, dsink, -(ds * (i - j)).sum((0, 2, 3))]


@pytest.mark.parametrize("form", FORMS)
def test_an_attend_has_the_gradients_of_the_books(form: FormName) -> None:
    variant = parse(ATTEND)
    x = draw(variant)
    for actual, expected in zip(oracle(variant, x, form=form), closed_form(x), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-11, atol=1e-13)


def test_the_primal_is_computed_anew_though_its_value_is_given() -> None:
    variant = parse(ATTEND)
    x = draw(variant)
    ev = evaluation(variant, x, "vector", None)
    known = {node: ev.whole(node) for node in variant.parameters}
    primal = variant.outputs[0].src[0]
    stale = Output(torch.full((2, 4, 4, 2), torch.nan).double(), torch.full((2, 4, 4), torch.nan).double())
    again = type(ev)({**known, primal: stale}, ev.dims, "vector", ev.q_offset, ev.device)
    for node in variant.outputs:
        torch.testing.assert_close(again.tensor(node), ev.tensor(node), rtol=0, atol=0)


def test_given_values_of_the_sources_are_the_ones_that_count() -> None:
    text = (
        HEAD
        + """, g: [B,TQ,H]) {
      o = attend(q, tokens(k, v))
      gate = map(g) {fn = sigmoid(x0)}
      return vjp(merge(o, o, gate, gate) {fn = gated}, do) {of = x2}, vjp(merge(o, gate) {fn = gated}, do) {of = x0}
    }"""
    )
    variant = parse(text)
    x = draw(variant)
    made = {"o": torch.ones(2, 4, 4, 2), "gate": torch.full((2, 4, 4), 3.0)}
    gate, branch = oracle(variant, {**x, **made})
    torch.testing.assert_close(gate, x["do"].sum(-1))
    torch.testing.assert_close(branch, 3 * x["do"])


@pytest.mark.parametrize("form", FORMS)
def test_no_slope_gives_zeros(form: FormName) -> None:
    text = """variant x(q: [B,TQ,H,D], k: [B,TK,HKV,D], ds: [B,TQ,H,TK]) {
      s = score(q, tokens(k)) {detach = true}
      return vjp(s, ds) {of = q}, vjp(s, ds) {of = keys}
    }"""
    variant = parse(text)
    x = draw(variant)
    for grad, name in zip(oracle(variant, x, form=form), ("q", "k"), strict=True):
        assert grad.shape == x[name].shape
        assert not bool(grad.any())


def test_fields_of_a_memory_have_gradients_of_their_own() -> None:
    text = """variant x(k: [M,HKV,D], v: [M,HKV,DV], dk: [1,M // 2,HKV,D], dv: [1,M // 2,HKV,DV]) {
      s = summary(slots(k, v)) {size = 2, stride = 2, fields = kv}
      return vjp(s, dk) {of = k}, vjp(s, dv) {of = v}
    }"""
    variant = parse(text)
    sizes = {"k": (4, 2, 3), "v": (4, 2, 2), "dk": (1, 2, 2, 3), "dv": (1, 2, 2, 2)}
    x = {name: torch.randn(size, dtype=torch.float64) for name, size in sizes.items()}
    for grad, name in zip(oracle(variant, x), ("dk", "dv"), strict=True):
        torch.testing.assert_close(grad, x[name][0].repeat_interleave(2, 0) / 2)


@pytest.mark.parametrize("form", FORMS)
def test_rows_that_see_nothing_give_nothing(form: FormName) -> None:
    text = (
        HEAD
        + """, dl: [B,TQ,H]) {
      m = tokens(k, v)
      a = attend(q, m, mask(m) {where = (j <= i) & (j > 3)})
      b = attend(q, m, mask(m) {where = (j <= i) & (j > 4)})
      o = merge(a, b) {fn = lse}
      return vjp(a, vjp(o, do, lse_grad=dl) {of = x0}, lse_grad=vjp(o, do, lse_grad=dl) {of = lse0}) {of = q}
    }"""
    )
    variant = parse(text)
    grad = oracle(variant, draw(variant), form=form)
    assert isinstance(grad, Tensor) and bool(grad.isfinite().all())
    assert not bool(grad[:, :2].any()) and bool(grad[:, 2:].all())


def test_blocks_of_rows_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    variant = parse(ATTEND)
    x = draw(variant)
    whole = oracle(variant, x, form="vector")
    monkeypatch.setattr(evaluate, "LONGEST_BLOCK", 3)
    for one, other in zip(oracle(variant, x, form="vector"), whole, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)


def test_an_adjoint_has_slopes_too() -> None:
    variant = parse(ATTEND)
    x = {name: value.requires_grad_() for name, value in draw(variant).items()}

    def joint(*values: Tensor) -> tuple[Tensor, ...]:
        result = oracle(variant, dict(zip(x, values, strict=True)), form="vector")
        assert isinstance(result, tuple)
        return result

    assert torch.autograd.gradcheck(joint, tuple(x.values()), fast_mode=True)


def test_nothing_is_recorded_under_no_grad() -> None:
    variant = parse(ATTEND)
    x = {name: value.requires_grad_() for name, value in draw(variant).items()}
    with torch.no_grad():
        silent = oracle(variant, x, form="vector")
    loud = oracle(variant, x, form="vector")
    for one, other in zip(silent, loud, strict=True):
        assert not one.requires_grad and other.requires_grad
        torch.testing.assert_close(one, other.detach(), rtol=0, atol=0)


def test_one_adjoint_is_a_node_like_any_other() -> None:
    variant = parse(ATTEND)
    x = draw(variant)
    shown = evaluate_node(variant, variant.outputs[1], x, form="vector")
    assert isinstance(shown, Tensor)
    torch.testing.assert_close(shown, closed_form(x)[1], rtol=1e-11, atol=1e-13)


def test_gradients_are_not_computed_at_a_few_rows() -> None:
    variant = parse(ATTEND)
    with pytest.raises(OracleError, match="x has gradients, which no few rows give"):
        oracle_rows(variant, draw(variant), [0, 1])
