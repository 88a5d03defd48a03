"""Variants: what equality and digest see, what a variant refuses, what binding dims finds."""

from __future__ import annotations

import pickle

import pytest

from sparsec.ir import build as lang
from sparsec.ir.dims import bind
from sparsec.ir.error import DeclarationError, InputError
from sparsec.ir.node import Node
from sparsec.ir.variant import Variant, variant


def window(size: int = 8, name: str = "local") -> Variant:
    """Attention over a window."""
    q = lang.input("q", "B TQ H D")
    pages = lang.tokens(lang.input("k", "B TK HKV D"), lang.input("v", "B TK HKV DV"))
    return variant(name, lang.attend(q, pages, lang.mask(pages, where=f"(j <= i) & (i - j < {size})")))


def landmarks() -> Variant:
    """Chunks chosen by given landmarks of an open number."""
    q, marks = lang.input("q", "B TQ H D"), lang.input("l", "B NC H D")
    pages = lang.tokens(lang.input("k", "B TK H D"), lang.input("v", "B TK H D"), chunk=8)
    chosen = lang.topk(lang.score(q, marks), k=2, size=8)
    return variant("landmarks", lang.attend(q, pages, chosen))


SHAPES: dict[str, tuple[int, ...]] = {"q": (2, 5, 6, 16), "k": (2, 7, 3, 16), "v": (2, 7, 3, 32)}


def test_equality_is_of_graphs() -> None:
    assert window() == window(name="other")
    assert window().digest == window(name="other").digest
    assert hash(window()) == hash(window(name="other"))
    assert window() != window(9)
    assert window().digest != window(9).digest


def test_digest_sees_input_names_and_dtypes() -> None:
    renamed = variant("x", lang.map(lang.input("a", "B")))
    other = variant("x", lang.map(lang.input("b", "B")))
    precise = variant("x", lang.map(lang.input("a", "B", "float32")))
    assert len({renamed.digest, other.digest, precise.digest}) == 3


def test_pickling_gives_the_same_nodes() -> None:
    back = pickle.loads(pickle.dumps(window()))
    assert back == window()
    assert back.outputs[0] is window().outputs[0]
    assert back.names == window().names


def test_inputs_in_the_order_of_the_walk() -> None:
    assert {name: str(spec) for name, spec in window().inputs.items()} == {
        "q": "[B, TQ, H, D]",
        "k": "[B, TK, HKV, D]",
        "v": "[B, TK, HKV, DV]",
    }


def test_names_are_those_of_the_author() -> None:
    assert set(window().names.values()) == {"q", "k", "v", "pages", "visible", "out"}


def test_a_pass_keeps_the_names_that_it_can() -> None:
    before = window()
    after = before.with_outputs([lang.map(before.outputs[0], fn="2.0 * x0")])
    assert set(before.names.values()) < set(after.names.values())
    assert after.parameters == before.parameters


def test_refusals() -> None:
    x, y = lang.input("x", "B D"), lang.input("y", "B D")
    cases: list[tuple[Node | list[Node], list[Node] | None, str]] = [
        (lang.map(x), [x, y], "input y: never used"),
        (lang.map(x, y, fn="x0 + x1"), [x], "input y: not a parameter"),
        (lang.map(x), [x, x], "declared twice"),
        ([], None, "returns nothing"),
        (lang.tokens(lang.input("k", "B T H D")), None, "returns a memory"),
        (lang.map(x, fn="x0 * DD"), None, "`DD` is no dim of any input. Fix: did you mean `D`"),
    ]
    for outputs, parameters, said in cases:
        with pytest.raises(DeclarationError, match=said):
            variant("wrong", outputs, parameters)


@pytest.mark.parametrize("name", ["self", "q_offset", "H", "lambda", "h", "score"])
def test_an_input_is_called_nothing_that_means_something_else(name: str) -> None:
    q, k, other = lang.input("q", "B TQ H D"), lang.input("k", "B TK H D"), lang.input(name, "H", dtype="float32")
    read = {"bias": f"1.0 + {name}[0]", name: other} if name in ("h", "score") else {"sink": other}
    with pytest.raises(DeclarationError, match=f"input {name}: `{name}`: it is "):
        variant("v", lang.attend(q, lang.tokens(k, k), **read))


@pytest.mark.parametrize("dim", ["i", "q_offset"])
def test_a_dim_is_called_nothing_that_expressions_call_else(dim: str) -> None:
    q, k = lang.input("q", "B TQ H D"), lang.input("k", f"B {dim} H D")
    with pytest.raises(DeclarationError, match=f"the dim {dim}: `{dim}` is an index variable"):
        variant("v", lang.attend(q, lang.tokens(k, k)))


def test_dims_bind() -> None:
    assert bind(window(), SHAPES) == {"B": 2, "TQ": 5, "TK": 7, "H": 6, "HKV": 3, "D": 16, "DV": 32}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"k": (2, 7, 4, 16), "v": (2, 7, 4, 32)}, "H = 6, HKV = 4.*divisible"),
        ({"k": (3, 7, 3, 16)}, "input k: B = 3: B is 2 in `q` and 3 in `k`"),
        ({"v": (2, 8, 3, 32)}, "TK is 7 in `k` and 8 in `v`"),
        ({"q": (2, 5, 96)}, r"input q: shape \(2, 5, 96\).*give 4 dims"),
        ({"vv": (1,)}, "input vv: unknown.*did you mean `v`"),
    ],
)
def test_shapes_that_disagree(change: dict[str, tuple[int, ...]], said: str) -> None:
    with pytest.raises(InputError, match=said):
        bind(window(), SHAPES | change)


def test_a_missing_input() -> None:
    with pytest.raises(InputError, match="input v: missing: local takes q, k, v"):
        bind(window(), {name: SHAPES[name] for name in ("q", "k")})


def test_open_dims_must_agree_with_the_chunks() -> None:
    shapes: dict[str, tuple[int, ...]] = {
        "q": (1, 20, 2, 16),
        "k": (1, 20, 2, 16),
        "v": (1, 20, 2, 16),
        "l": (1, 3, 2, 16),
    }
    assert bind(landmarks(), shapes)["NC"] == 3
    with pytest.raises(InputError, match=r"NC = 2.* = 3.*scored and stored chunks must agree"):
        bind(landmarks(), shapes | {"l": (1, 2, 2, 16)})


def test_expressions_in_shapes_are_checked() -> None:
    x = lang.input("x", "B TK")
    marks = lang.input("marks", "B, (TK + 63) // 64")
    both = variant("both", [lang.map(x), lang.map(marks)])
    assert bind(both, {"x": (1, 100), "marks": (1, 2)})["TK"] == 100
    with pytest.raises(InputError, match=r"dim of 3: \(TK \+ 63\) // 64 is 2 here"):
        bind(both, {"x": (1, 100), "marks": (1, 3)})


def test_a_dim_that_no_shape_states() -> None:
    hidden = variant("hidden", lang.map(lang.input("x", "B, 2 * TK")))
    with pytest.raises(InputError, match="no input has this dim by itself"):
        bind(hidden, {"x": (1, 4)})


def test_fixed_dims() -> None:
    fixed = variant("fixed", lang.map(lang.input("x", "B 4")))
    with pytest.raises(InputError, match="dim of 5: the declaration fixes 4"):
        bind(fixed, {"x": (1, 5)})


@pytest.mark.parametrize("name", ["TQ", "TK", "B"])
def test_an_input_is_called_as_no_length_of_a_kernel(name: str) -> None:
    """Its kernels would have two arguments of that name."""
    x = lang.input(name, ["N", "T", "H", "D"])
    with pytest.raises(DeclarationError, match=f"`{name}`: it is a length that every kernel takes"):
        variant("one", lang.map(x, fn="x0"))


@pytest.mark.parametrize("name", ["q_offset", "cu_seqlens", "max_seqlen_k", "cache"])
def test_an_input_is_called_as_no_argument_of_a_call(name: str) -> None:
    """It could never be given by name."""
    x = lang.input(name, ["B", "T", "H", "D"])
    with pytest.raises(DeclarationError, match=f"`{name}`: it is an argument of every compiled variant"):
        variant("one", lang.map(x, fn="x0"))
