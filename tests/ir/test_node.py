"""Nodes are interned: equal is identical, different is different."""

from __future__ import annotations

import gc

import pytest

from sparsec.ir import build as lang
from sparsec.ir.error import DeclarationError
from sparsec.ir.node import Node, topological
from sparsec.ir.op import Op
from sparsec.ir.origin import origin_of
from sparsec.scalar.expr import Expr, var


def memory(chunk: int | None = None) -> Node:
    """Keys and values as presets declare them."""
    return lang.tokens(lang.input("k", "B TK HKV D"), lang.input("v", "B TK HKV DV"), chunk=chunk)


def test_equal_is_identical() -> None:
    assert memory(64) is memory(64)
    assert lang.mask(memory(), where="j <= i") is lang.mask(memory(), where=lambda i, j: j <= i)


def test_different_is_different() -> None:
    assert memory(64) is not memory(32)
    assert lang.input("k", "B TK HKV D") is not lang.input("k", "B TK HKV D", "float32")
    q = lang.input("q", "B TQ H D")
    assert lang.attend(q, memory(), softcap=1.0).attrs != lang.attend(q, memory(), softcap=2.0).attrs


def test_nodes_are_forgotten() -> None:
    from sparsec.ir import node as module

    gc.collect()
    before = len(module._TABLE)
    kept = lang.input("only_here", "B 17")
    assert len(module._TABLE) == before + 1
    del kept
    gc.collect()
    assert len(module._TABLE) == before


def test_shapes_are_inferred() -> None:
    q, mem = lang.input("q", "B TQ H D"), memory(64)
    summaries = lang.summary(mem, size=32, stride=16, fields="kv")
    scores = lang.reduce(lang.score(q, summaries), over="group")
    blocks = lang.reduce(scores, over="overlap", size=32, stride=16, block=64)
    chosen = lang.topk(blocks, k=4, size=64)
    shapes = [[str(dim) for dim in node.shape] for node in (summaries, scores, blocks, chosen)]
    assert shapes == [
        ["B", "(TK + 15) // 16", "HKV", "D", "DV"],
        ["B", "TQ", "HKV", "(TK + 15) // 16"],
        ["B", "TQ", "HKV", "(TK + 63) // 64"],
        ["B", "TQ", "HKV", "4"],
    ]
    assert [str(dim) for dim in lang.attend(q, mem, chosen).shape] == ["B", "TQ", "H", "DV"]


def test_defaults_are_written_out() -> None:
    q = lang.input("q", "B TQ H D")
    out = lang.attend(q, memory())
    assert str(out["scale"]) == "rsqrt(D)"
    assert out.word("per") == "joint"
    chosen = lang.topk(lang.score(q, lang.summary(memory(), size=8, stride=8)), k=2, size=8, scope="head")
    assert chosen.integer("slots") == 2


def test_sources_by_role() -> None:
    q, sink, slope = lang.input("q", "B TQ H D"), lang.input("sink", "H"), lang.input("slope", "H")
    seen = lang.mask(memory(), where="causal")
    out = lang.attend(q, memory(), seen, sink=sink, bias="score - slope[h] * (i - j)", slope=slope)
    assert out.positional == (q, memory(), seen)
    assert out.operands == {"sink": sink}
    assert out.captures == {"slope": slope}
    assert out.src == (q, memory(), seen, sink, slope)


def test_a_capture_that_nothing_reads_is_no_source() -> None:
    slope = lang.input("slope", "H")
    assert lang.mask(memory(), where="causal", slope=slope) is lang.mask(memory(), where="causal")


def test_elements_of_inputs_in_traced_functions() -> None:
    ids = lang.input("ids", "B TK int32")
    traced = lang.mask(memory(), where=lambda b, i, j: (ids[b, i] == ids[b, j]) & (j <= i), ids=ids)
    assert traced is lang.mask(memory(), where="(ids[b, i] == ids[b, j]) & (j <= i)", ids=ids)


def test_tensors_that_a_function_closes_over_are_captured() -> None:
    """Inputs by their own names, what is computed by the variable's; a keyword gives another name, not another node."""
    q, slopes, f = lang.input("q", "B TQ H D"), lang.input("slope", "H"), lang.input("f", "B TK H float32")
    faded, near = lang.prefix(f), lang.mask(memory(), where="causal")

    def fade(score: Expr, b: Expr, h: Expr, i: Expr, j: Expr) -> Expr:
        return score - slopes[h] * (i - j) + faded[b, i, h] - faded[b, j, h]

    read = lang.attend(q, memory(), near, bias=fade)
    assert read.captures == {"slope": slopes, "faded": faded}
    assert read is lang.attend(q, memory(), near, bias=fade, slope=slopes, faded=faded)
    assert lang.attend(q, memory(), near, bias=fade, sum=faded).captures == {"slope": slopes, "sum": faded}
    ids = lang.input("ids", "B TK int32")
    assert lang.mask(memory(), where=lambda b, i, j: ids[b, i] == ids[b, j]).captures == {"ids": ids}


def test_what_a_function_closes_over_never_becomes_an_operand() -> None:
    """Whatever it is called; an operand may be read by a function too."""
    q, near = lang.input("q", "B TQ H D"), lang.mask(memory(), where="causal")
    sink, slopes = lang.prefix(lang.input("f", "B TK H float32")), lang.input("sink", "H")
    read = lang.attend(q, memory(), near, bias=lambda score, b, h, j: score + sink[b, j, h])
    assert read.captures == {"sink_1": sink} and read["sink"] == "none"
    with pytest.raises(DeclarationError, match=r"the name of an operand\. Fix: call the input sink_in"):
        lang.attend(q, memory(), near, bias=lambda score, h, i, j: score - slopes[h] * (i - j))
    named = lang.attend(q, memory(), near, bias=lambda score, h, i, j: score - slopes[h] * (i - j), my_sink=slopes)
    assert named.captures == {"my_sink": slopes} and named["sink"] == "none"
    level = lang.input("level", "H")
    both = lang.attend(q, memory(), near, sink=level, bias=lambda score, h: score + level[h])
    assert both.captures == {"level": level} and both["sink"] == "given" and both.src[-2:] == (level, level)


def test_an_input_is_read_by_its_own_name_whatever_else_is_called_so() -> None:
    q, raw, a = lang.input("q", "B TQ H D"), lang.input("gate", "B TK H"), lang.input("a", "B TK H")
    gate, near = lang.map(a, raw, fn=lambda x, y: x * y), lang.mask(memory(), where="causal")

    def bias(score: Expr, b: Expr, h: Expr, j: Expr) -> Expr:
        return score + raw[b, j, h] + 3 * gate[b, j, h]

    read = lang.attend(q, memory(), near, bias=bias)
    assert read.captures == {"gate": raw, "gate_1": gate}
    assert str(read.expr("bias")) == "score + gate[b, j, h] + 3.0 * gate_1[b, j, h]"
    with pytest.raises(DeclarationError, match=r"also reads the input `gate`\. Fix: give the keyword another name"):
        lang.attend(q, memory(), near, bias=bias, gate=gate)
    assert lang.attend(q, memory(), near, bias=bias, other=gate).captures == {"gate": raw, "other": gate}


def test_elements_need_an_input_and_all_indices() -> None:
    with pytest.raises(TypeError, match="index every dim"):
        lang.input("ids", "B TK int32")[var("b")]
    with pytest.raises(TypeError, match="has no name here"):
        lang.map(lang.input("x", "B"))[var("b")]


def test_the_origin_is_the_calling_line_and_the_variable() -> None:
    chosen_name = lang.input("a_name_of_its_own", "B")
    origin = origin_of(chosen_name)
    assert origin is not None
    assert (origin.file, origin.name) == (__file__, "chosen_name")


def test_topological_order_is_iterative_and_sources_first() -> None:
    x = lang.input("x", "B")
    for _ in range(3000):
        x = lang.map(x, fn="x0 + 1.0")
    order = topological([x])
    place = {node: n for n, node in enumerate(order)}
    assert len(order) == 3001 and order[0].op is Op.INPUT
    assert all(place[source] < place[node] for node in order for source in node.src)
