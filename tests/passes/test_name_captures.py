"""What masks and biases call a tensor that they read: kernels know each by one name."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor

import sparsec
from sparsec.ir import build as lang
from sparsec.ir.node import Node
from sparsec.ir.op import Op
from sparsec.ir.variant import Variant
from sparsec.oracle import check, oracle
from sparsec.passes.name_captures import name_captures
from sparsec.passes.pipeline import run
from sparsec.testing.whole.trained import wrong_on

HEAD = "q: [B,T,H,D], k: [B,T,HKV,D], v: [B,T,HKV,DV]"
NEAR = "mask(m) {where = (j <= i) & (j > i - 16)}"
BODIES = {
    "a map by an input's name": (
        "g: [H] float32",
        f"""slope = map(g) {{fn = -exp(x0)}}
        a = attend(q, m, {NEAR}, g=slope) {{bias = score + 0.1 * g[h] * (i - j)}}
        b = attend(q, m, {NEAR}, g=g) {{bias = score + 0.1 * g[h] * (i - j)}}""",
    ),
    "running sums and their source": (
        "f: [B,T,H] float32",
        f"""each = map(f) {{fn = -exp(x0)}}
        a = attend(q, m, {NEAR}, f=prefix(each)) {{bias = score + f[b,i,h] - f[b,j,h]}}
        b = attend(q, m, {NEAR}, f=each, g=f) {{bias = score + 0.1 * f[b,j,h] * g[b,i,h]}}""",
    ),
    "two by one name": (
        "f: [B,T,H] float32",
        f"""a = attend(q, m, {NEAR}, s=prefix(f)) {{bias = score + 0.1 * s[b,j,h]}}
        b = attend(q, m, {NEAR}, s=prefix(map(f) {{fn = tanh(x0)}})) {{bias = score - 0.1 * s[b,j,h]}}""",
    ),
    "names in turn": (
        "f: [B,T,H] float32, g: [B,T,H] float32",
        f"""a = attend(q, m, {NEAR}, g=f, f=g) {{bias = score + 0.1 * g[b,j,h] * f[b,i,h]}}
        b = attend(q, m, {NEAR}, f=f, also=f) {{bias = score + 0.1 * f[b,j,h] * also[b,i,h]}}""",
    ),
}


def layer(name: str) -> Variant:
    more, body = BODIES[name]
    text = f"variant named({HEAD}, {more}) {{\nm = tokens(k, v)\n{body}\nreturn merge(a, b) {{fn = sum}}\n}}"
    return sparsec.parse(text)


def drawn(variant: Variant) -> dict[str, Tensor]:
    return sparsec.inputs(variant, seed=3, B=2, T=43, H=4, HKV=2, D=16, DV=16)


@pytest.mark.parametrize("name", BODIES)
def test_each_has_one_name_which_is_no_other_s(name: str) -> None:
    made = name_captures(layer(name))
    read = {(called, source) for node in made.nodes for called, source in node.captures.items()}
    assert len({called for called, _ in read}) == len({source for _, source in read}) == len(read)
    assert all(made.names[source] == called for called, source in read)
    assert name_captures(made) is made


@pytest.mark.parametrize("name", BODIES)
def test_outputs_gradients_and_steps(name: str) -> None:
    variant = layer(name)
    made, x = sparsec.compile(variant, target="interpreter"), drawn(variant)
    assert wrong_on(made, x, "float32") == []
    cache, parts = made.init_cache(batch=2, max_length=43), list[Tensor]()
    for a, b in pairwise((0, 30, 31, 43)):
        part = made.decode(cache, **{n: t[:, a:b] if t.dim() > 1 else t for n, t in x.items()})
        assert isinstance(part, Tensor)
        parts.append(part)
    want = oracle(variant, x)
    assert isinstance(want, Tensor) and check(torch.cat(parts, 1), want, "float32")


def test_masks_that_call_two_tensors_the_same_are_joined() -> None:
    masks = "mask(m, s=a) {where = s[b,i] == s[b,j]}, mask(m, s=c) {where = s[b,i] <= s[b,j]}"
    ints = "a: [B,T] int32, c: [B,T] int32"
    made = run(sparsec.parse(f"variant two({HEAD}, {ints}) {{\nm = tokens(k, v)\nreturn attend(q, m, {masks})\n}}"))
    (mask,) = [node for node in made.nodes if node.op is Op.MASK]
    assert [*mask.captures] == ["a", "c"]


def test_a_function_that_reads_what_it_is_given_may_be_called_twice() -> None:
    def twice(q: "B T H D", k: "B T H D", v: "B T H DV", f: "B T H float32", sink: "B T H") -> Node:  # type: ignore[valid-type]  # noqa: F722
        memory = lang.tokens(k, v)
        near = lang.mask(memory, where="causal")

        def faded(gate: Node) -> Node:
            return lang.attend(q, memory, near, bias=lambda score, b, h, j: score + 0.1 * gate[b, j, h])

        weights = lang.map(f, sink, fn=lambda x, y: x * y)
        return lang.merge(faded(lang.prefix(f)), faded(weights), faded(f), fn="sum")

    variant = sparsec.variant(twice)
    made = sparsec.compile(variant, target="interpreter")
    assert wrong_on(made, sparsec.inputs(variant, seed=3, B=2, T=43, H=2, D=16, DV=16), "float32") == []
