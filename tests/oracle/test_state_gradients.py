"""Matrix states: the quick form is the token-by-token one, and their adjoints are autograd of the whole oracle."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sparsec.frontends.text import parse
from sparsec.ir.variant import Variant
from sparsec.oracle import oracle
from sparsec.oracle.form import FormName
from sparsec.passes.differentiate import differentiate

FORMS: tuple[FormName, ...] = ("loop", "vector")
SIZES = {"B": 2, "T": 37, "H": 4, "HKV": 2, "D": 3, "DV": 5, "DX": 4}
HEAD = "q: [B,T,H,D], k: [B,T,HKV,D], v: [B,T,HKV,DV], beta: [B,T,HKV]"

CASES = {
    "linear": f"variant x({HEAD}) {{ return recall(q, write(state(), k, v, beta=beta)) }}",
    "scalar delta, from given states": f"""variant x({HEAD}, g: [B,T,HKV] float32, m: [B,1,HKV,D,DV] float32) {{
      s = write(state(m), k, v, beta=beta, decay=g) {{rule = delta, decay_kind = scalar}}
      return recall(q, s) {{scale = rsqrt(D)}}, s
    }}""",
    "delta by channel, learned first states": f"""variant x({HEAD}, g: [B,T,HKV,D] float32, m: [1,HKV,D,DV]) {{
      s = write(state(m), k, v, beta=beta, decay=g) {{rule = delta, decay_kind = key}}
      return recall(q, s), s
    }}""",
    "undecayed erase": f"""variant x({HEAD}, g: [B,T,HKV,D], a: [B,T,HKV,D], b: [B,T,HKV,D]) {{
      s = write(state(), k, v, beta=beta, decay=g, erase_a=a, erase_b=b)
        {{rule = delta, decay_kind = key, reads = undecayed}}
      return recall(q, s)
    }}""",
    "two readers, one before the write": f"""variant x({HEAD}, p: [B,T,H,D], g: [B,T,HKV]) {{
      s = write(state(), k, v, beta=beta, decay=g) {{rule = delta, decay_kind = scalar}}
      return recall(q, s), recall(p, s) {{when = before}}, s
    }}""",
    "parts that rest": f"""variant x({HEAD}, g: [B,T,HKV], y: [B,T,1,DX], w: [3,1,DX]) {{
      scores = score(y, w) {{fn = router}}
      chosen = topk(scores) {{k = 1, unit = part, scope = token, selector_gradient = through_weights}}
      e = weights(scores, chosen) {{fn = softmax, renormalise = false}}
      s = write(state() {{parts = 3}}, k, v, beta=beta, decay=g, route=chosen, weight=e)
        {{rule = delta, decay_kind = scalar}}
      return recall(q, s) {{renormalise = false}}, s
    }}""",
}


def draw(variant: Variant, seed: int = 0, **sizes: int) -> dict[str, Tensor]:
    """Normal numbers; g are log-decays, of which some are 0 and some -inf; k is short."""
    dims, generator = SIZES | sizes, torch.Generator().manual_seed(seed)
    made = {
        name: torch.randn(
            [dims[str(d)] if str(d) in dims else int(str(d)) for d in spec.shape],
            generator=generator,
            dtype=torch.float64,
        )
        for name, spec in variant.inputs.items()
    }
    if "g" in made:
        made["g"] = -made["g"].abs()
        for at, value in ((2, 0.0), (3, -torch.inf), (20, -50.0)):
            made["g"][:, at : at + 1] = value
    return {name: x * 0.4 if name in "kab" else x for name, x in made.items()}


def results(variant: Variant, x: dict[str, Tensor], form: FormName) -> tuple[Tensor, ...]:
    found = oracle(variant, x, form=form)
    return found if isinstance(found, tuple) else (found,)


@pytest.mark.parametrize("case", CASES)
def test_a_chunk_at_a_time_is_token_by_token(case: str) -> None:
    variant = parse(CASES[case])
    x = draw(variant)
    for quick, slow in zip(results(variant, x, "vector"), results(variant, x, "loop"), strict=True):
        torch.testing.assert_close(quick, slow, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("form", FORMS)
def test_adjoints_are_autograd_of_the_whole_oracle(case: str, form: FormName) -> None:
    variant = parse(CASES[case])
    done = differentiate(variant)
    tokens = 9 if form == "loop" else 90
    x = draw(done.variant, T=tokens)
    joint = dict(zip(done.variant.outputs, results(done.variant, x, form), strict=True))
    leaves = {name: x[name].clone().requires_grad_() for name in variant.inputs}
    outputs = results(variant, leaves, form)
    cotangents = [x[done.cotangents[node]] for node in variant.outputs]
    expected = torch.autograd.grad(outputs, list(leaves.values()), cotangents)
    for (name, node), truth in zip(done.gradients.items(), expected, strict=True):
        assert node is not None
        torch.testing.assert_close(joint[node], truth, rtol=1e-8, atol=1e-10, msg=name)


def test_adjoints_agree_with_finite_differences() -> None:
    variant = parse(CASES["delta by channel, learned first states"])
    x = {n: y.clamp(min=-3) if n == "g" else y for n, y in draw(variant, T=5, B=1, H=2, HKV=1).items()}
    x = {name: y.requires_grad_() for name, y in x.items()}
    assert torch.autograd.gradcheck(
        lambda *y: results(variant, dict(zip(x, y, strict=True)), "vector"), tuple(x.values()), fast_mode=True
    )


def test_the_gradients_print_and_parse() -> None:
    done = differentiate(parse(CASES["two readers, one before the write"]))
    assert parse(done.variant.text()).outputs == done.variant.outputs
    assert "vjp(s, grad_s, grad_s_out_2, grad_s_out) {of = k}" in done.variant.text()


def test_no_token_leaves_the_states_as_they_were() -> None:
    variant = parse("variant x(k: [B,T,HKV,D], v: [B,T,HKV,DV], m: [B,1,HKV,D,DV]) { return write(state(m), k, v) }")
    x = draw(variant, T=0)
    for form in FORMS:
        assert bool((results(variant, x, form)[0] == x["m"]).all())
