"""Graphs evaluated token by token and in blocks agree, on outputs, on gradients, on single rows and on single nodes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import sparsec.oracle
from sparsec.ir import build as ir
from sparsec.ir.error import InputError
from sparsec.ir.node import Node
from sparsec.ir.op import Op
from sparsec.ir.variant import Variant, variant
from sparsec.oracle import Chosen, OracleError, evaluate_node, oracle, oracle_rows
from sparsec.oracle.rows import ROWS
from sparsec.oracle.whole import WHOLE

CHUNK = 4


def qkv() -> tuple[Node, Node, Node]:
    """The inputs of most variants."""
    return ir.input("q", "B TQ H D"), ir.input("k", "B TK HKV D"), ir.input("v", "B TK HKV DV")


def window() -> Variant:
    """A window with sinks, slots under the same softmax, a soft cap and a bias with a captured tensor."""
    q, k, v = qkv()
    slots = ir.slots(ir.input("sk", "M HKV D"), ir.input("sv", "M HKV DV"))
    memory = ir.tokens(k, v)
    near = ir.mask(memory, where="(j <= i) & ((i - j < 5) | (j < 2))")
    slope = ir.input("slope", "H")
    o = ir.attend(q, memory, near, softcap=3.0, bias="score - slope[h] * (i - j)", slope=slope)
    both = ir.merge(o, ir.attend(q, slots, softcap=3.0), fn="lse")
    return variant("window", [both, ir.lse(both)])


def hsa() -> Variant:
    """Chunks by mean keys, stick-breaking weights, a softmax with a zero sink inside each chunk."""
    q, k, v = qkv()
    memory = ir.tokens(k, v, chunk=CHUNK)
    scores = ir.reduce(ir.score(q, ir.summary(memory, size=CHUNK, stride=CHUNK)), over="group", op="mean")
    how = {"eligible": "complete_past", "order": "newest", "selector_gradient": "through_weights"}
    chosen = ir.topk(scores, k=3, size=CHUNK, **how)  # type: ignore[arg-type]
    weight = ir.weights(scores, chosen, fn="stick")
    return variant("hsa", ir.attend(q, memory, chosen, weights=weight, per="chunk", sink="zero"))


def nsa() -> Variant:
    """Compressed, selected and window branches with gates; overlapping summaries; forced blocks."""
    q, k, v = qkv()
    memory = ir.tokens(k, v, chunk=CHUNK)
    short = ir.summary(memory, size=4, stride=2, fields="kv")
    seen = "2 * c + 3 <= i"
    small = ir.attend(q, short, ir.mask(short, where="2 * j + 3 <= i"))
    grouped = ir.reduce(ir.score(q, short), over="group", op="sum", pre="softmax", visible=seen)
    blocks = ir.reduce(grouped, over="overlap", size=4, stride=2, block=CHUNK)
    forced = f"(c == 0) | (c == i // {CHUNK}) | (c == i // {CHUNK} - 1)"
    chosen = ir.topk(blocks, k=4, size=CHUNK, eligible="started", forced=forced)
    causal = ir.mask(memory, where="j <= i")
    large = ir.attend(q, memory, chosen, causal)
    near = ir.attend(q, memory, ir.mask(memory, where="(j <= i) & (i - j < 3)"), sink=ir.input("sink", "H"))
    gates = [ir.map(ir.input(name, "B TQ H"), fn="sigmoid(x0)") for name in ("g0", "g1", "g2")]
    return variant("nsa", ir.merge(small, large, near, fn="gated", gates=gates))


def moba() -> Variant:
    """Per head, own block forced, the selection has no gradient."""
    q, k, v = qkv()
    memory = ir.tokens(k, v, chunk=CHUNK)
    scores = ir.score(q, ir.summary(memory, size=CHUNK, stride=CHUNK), scale=1.0, detach=True)
    chosen = ir.topk(scores, k=3, size=CHUNK, scope="head", eligible="started", forced=f"c == i // {CHUNK}")
    return variant("moba", ir.attend(q, memory, chosen, ir.mask(memory, where="j <= i")))


def infllm() -> Variant:
    """Max-pooled summaries, forced first and local blocks that do not count, ascending order, convex merge."""
    q, k, v = qkv()
    memory = ir.tokens(k, v, chunk=CHUNK)
    short = ir.summary(memory, size=4, stride=2)
    grouped = ir.reduce(ir.score(q, short), over="group", op="sum", pre="softmax", visible="2 * c + 3 <= i")
    blocks = ir.reduce(grouped, over="blocks", op="max", kernel=3, stride=2, padding=1)
    forced = f"(c == 0) | (c >= i // {CHUNK} - 1)"
    rule = {"eligible": "started", "forced": forced, "count_forced": False, "order": "oldest"}
    chosen = ir.topk(blocks, k=1, slots=4, size=CHUNK, **rule)  # type: ignore[arg-type]
    causal = ir.mask(memory, where="j <= i")
    gate = ir.input("gate", "B TQ H")
    both = ir.merge(ir.attend(q, memory, chosen, causal), ir.attend(q, memory, causal), fn="convex", gates=[gate])
    return variant("infllm", both)


def tokens_chosen() -> Variant:
    """Single tokens chosen by an indexer for all heads (DSA)."""
    q, k, v = qkv()
    memory, index = ir.tokens(k, v), ir.tokens(ir.input("ki", "B TK 1 DI"))
    weights = ir.input("wi", "B TQ HI")
    scores = ir.score(ir.input("qi", "B TQ HI DI"), index, fn="indexer", head_weights=weights)
    chosen = ir.topk(scores, k=4, unit="token", scope="token", eligible="c <= i")
    return variant("dsa", ir.attend(q, memory, chosen))


VARIANTS: list[Callable[[], Variant]] = [window, hsa, nsa, moba, infllm, tokens_chosen]
SIZES = {"B": 2, "TQ": 7, "TK": 11, "H": 4, "HKV": 2, "D": 3, "DV": 5, "M": 3, "HI": 3, "DI": 2, "1": 1}


def sample(of: Variant, **sizes: int) -> dict[str, Tensor]:
    """Random inputs with gradients."""
    generator = torch.Generator().manual_seed(0)
    dims = SIZES | sizes
    shapes = {name: [dims[str(dim)] for dim in spec.shape] for name, spec in of.inputs.items()}
    make = {name: torch.randn(shape, generator=generator, dtype=torch.float64) for name, shape in shapes.items()}
    return {name: x.requires_grad_() for name, x in make.items()}


def results(of: Variant, inputs: dict[str, Tensor], form: str, **how: int) -> list[Tensor]:
    """Outputs and the gradients of a weighted sum of the finite ones."""
    found = oracle(of, inputs, form=form, **how)  # type: ignore[call-overload]
    outputs = [found] if isinstance(found, Tensor) else list(found)
    total = torch.cat([x[x.isfinite()] for x in outputs])
    loss = (total * torch.arange(total.numel()).cos()).sum() + 0 * sum(x.sum() for x in inputs.values())
    grads = torch.autograd.grad(loss, list(inputs.values()), allow_unused=True, materialize_grads=True)
    return [*outputs, *grads]


@pytest.mark.parametrize("declare", VARIANTS)
@pytest.mark.parametrize(
    "sizes", [{}, {"TQ": 11, "HKV": 4, "B": 1}, {"TQ": 1, "TK": 1, "H": 3, "HKV": 1}, {"TQ": 9, "TK": 5}]
)
def test_forms_agree(declare: Callable[[], Variant], sizes: dict[str, int]) -> None:
    of = declare()
    inputs = sample(of, **sizes)
    for slow, quick in zip(results(of, inputs, "loop"), results(of, inputs, "vector"), strict=True):
        torch.testing.assert_close(slow, quick, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("declare", VARIANTS)
def test_some_rows_are_rows_of_all(declare: Callable[[], Variant]) -> None:
    of = declare()
    inputs, rows = sample(of), [0, 6, 3, 3]
    every, some = oracle(of, inputs, form="vector"), oracle_rows(of, inputs, rows)
    pairs = [(every, some)] if isinstance(every, Tensor) else list(zip(every, some, strict=True))
    for whole, part in pairs:
        assert isinstance(whole, Tensor) and isinstance(part, Tensor)
        torch.testing.assert_close(whole[:, rows], part)


@pytest.mark.parametrize("empty", [{"TQ": 0}, {"TK": 0, "TQ": 2}, {"B": 0}])
@pytest.mark.parametrize("declare", [window, moba])
def test_nothing_is_legal(declare: Callable[[], Variant], empty: dict[str, int]) -> None:
    of = declare()
    for form in ("loop", "vector"):
        outputs = oracle(of, sample(of, **empty), form=form)
        first = outputs if isinstance(outputs, Tensor) else outputs[0]
        assert list(first.shape) == [(SIZES | empty)[name] for name in ("B", "TQ", "H", "DV")]


def test_a_node_can_be_given_and_asked_for() -> None:
    of = moba()
    inputs = sample(of)
    outputs, values = oracle(of, inputs, return_all=True)
    chosen = values["chosen"]
    assert isinstance(chosen, Chosen) and chosen.score is not None and chosen.ids.shape == (2, 7, 4, 3)
    assert chosen.score.shape == (2, 7, 4, 3) and bool((chosen.ids[:, 0, :, 0] == 1).all())
    other = oracle(of, {**inputs, "chosen": torch.where(chosen.ids == 0, -1, chosen.ids)})
    assert isinstance(other, Tensor) and isinstance(outputs, Tensor)
    assert not torch.allclose(other, outputs)
    torch.testing.assert_close(oracle(of, {**inputs, "chosen": chosen.ids.flip(-1)}), outputs)
    scores = evaluate_node(of, "scores", inputs)
    assert isinstance(scores, Tensor) and torch.equal(scores, chosen.score)


def test_the_offset_moves_the_queries() -> None:
    of = moba()
    inputs = sample(of, TQ=11)
    every = oracle(of, inputs)
    assert isinstance(every, Tensor)
    later = oracle(of, {**inputs, "q": inputs["q"][:, 4:6]}, q_offset=4)
    torch.testing.assert_close(later, every[:, 4:6])


def test_lists_from_outside_are_checked() -> None:
    q, k, v = qkv()
    lists = ir.input("lists", "B TQ HKV K", "int32")
    chosen = ir.given(lists, size=CHUNK, counts=ir.input("counts", "B TQ HKV", "int32"))
    of = variant("given", ir.attend(q, ir.tokens(k, v, chunk=CHUNK), chosen))
    dims = {"B": 1, "TQ": 2, "TK": 9, "H": 2, "HKV": 1}
    inputs = {name: x for name, x in sample(moba(), **dims).items()}
    inputs["lists"] = torch.tensor([[[[2, 0, -1]], [[1, 1, 2]]]], dtype=torch.int32)
    inputs["counts"] = torch.tensor([[[2], [1]]], dtype=torch.int32)
    fine = oracle(of, inputs)
    assert isinstance(fine, Tensor) and bool(fine.isfinite().all())
    with pytest.raises(OracleError, match="twice"):
        oracle(of, {**inputs, "counts": inputs["counts"] + 1})
    with pytest.raises(OracleError, match="index 3 is out of range: there are 3"):
        oracle(of, {**inputs, "lists": inputs["lists"] + 1})


def test_what_is_missing_or_unknown_is_named() -> None:
    inputs = sample(moba())
    with pytest.raises(InputError, match="k"):
        oracle(moba(), {name: x for name, x in inputs.items() if name != "k"})
    with pytest.raises(InputError, match=r"chosem.*chosen"):
        oracle(moba(), {**inputs, "chosem": inputs["q"]})


def test_the_module_is_the_function_of_the_public_face() -> None:
    inputs = sample(moba())
    torch.testing.assert_close(sparsec.oracle(moba(), **inputs), oracle(moba(), inputs))  # type: ignore[operator]
    torch.testing.assert_close(sparsec.oracle(moba(), inputs, form="vector"), oracle(moba(), inputs))  # type: ignore[operator]


def test_constants_are_exact() -> None:
    q, k, v = qkv()
    tenth = variant("tenth", ir.map(ir.attend(q, ir.tokens(k, v)), fn="0.1 * x0"))
    plain = variant("plain", ir.attend(q, ir.tokens(k, v)))
    inputs = sample(plain)
    one, ten = (oracle(of, inputs) for of in (tenth, plain))
    assert isinstance(ten, Tensor)
    torch.testing.assert_close(one, 0.1 * ten, rtol=1e-15, atol=0)


def test_every_op_has_a_meaning_or_says_that_it_has_none() -> None:
    assert not ROWS.keys() & WHOLE.keys() - {Op.MAP, Op.AUX}
    assert ROWS.keys() | WHOLE.keys() == set(Op)
