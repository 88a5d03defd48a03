"""Presets: whatever the knobs, the graph prints and parses back and binds to its inputs; wrong knobs are refused."""

from __future__ import annotations

import importlib.util
import pkgutil

import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st

import sparsec
from sparsec.frontends.preset import NAMES, Knob, find, parse_knobs
from sparsec.ir.dims import bind
from sparsec.ir.error import DeclarationError
from sparsec.ir.verify import verify

WORDS = {
    "pattern": ["window", "dilated", "strided", "log_sparse", "global", "random", "window+random+global"],
    "branches": ["cmp+slc+swa", "slc", "swa+slc", "cmp"],
}


SIZES = {
    "dilation": (1, 70),
    "keep": (1, 70),
    "steps": (1, 5),
    "levels": (1, 3),
    "parts": (2, 5),
    "branching": (2, 3),
    "top": (0, 3),
    "rows": (1, 70),
}


def values(preset: str, knob: Knob) -> st.SearchStrategy[object]:
    """Legal values of a knob; sizes keep their defaults, as divisibility is tested elsewhere."""
    if knob.name in WORDS or knob.choices:
        return st.sampled_from(WORDS.get(knob.name) or list(knob.choices))
    if isinstance(knob.default, bool):
        return st.booleans()
    if isinstance(knob.default, float):
        return st.sampled_from({"lower": [0.0, 0.25], "normaliser": [1.0, 30.0]}.get(knob.name, [0.0, 30.0]))
    if knob.name in ("chunk", "block", "size", "stride", "document", "pool"):
        return st.just(knob.default)
    if (preset, knob.name) == ("lola", "window"):
        return st.sampled_from([0, 64, 192])  # whole chunks
    if knob.name == "k":
        return st.integers(1, 2) if preset in ("sse", "sse_gdn", "rsa") else st.integers(200, 270)
    return st.integers(*SIZES.get(knob.name, (0, 70)))


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=25)
@given(data=st.data())
def test_text_round_trips(name: str, data: st.DataObject) -> None:
    knobs = {knob.name: data.draw(values(name, knob), label=knob.name) for knob in find(name).knobs}
    if knobs.get("readout") == "sum":
        knobs["top"] = 0  # a sum reads every active state
    try:
        made = sparsec.preset(name, **knobs)
    except DeclarationError as error:
        assert "no query sees any key" in error.rule and 0 in knobs.values()
        reject()
    verify(made.outputs, "after the preset")
    back = sparsec.parse(made.text())
    assert back.outputs == made.outputs and all(a is b for a, b in zip(back.outputs, made.outputs, strict=True))
    assert back.parameters == made.parameters
    assert back.digest == made.digest
    assert made.text().endswith(back.text())  # before it, a line that says the knobs


@pytest.mark.parametrize("name", NAMES)
def test_inputs_bind(name: str) -> None:
    made = sparsec.preset(name)
    heads = {"H": 1, "HV": 6} if name == "mamba1" else {"H": 6, "HKV": 3}  # its channels are heads
    sizes = {**heads, "D": 16}
    tensors = sparsec.inputs(made, dtype="bfloat16", device="cpu", seed=0, T=70, **sizes)
    dims = bind(made, {key: tuple(x.shape) for key, x in tensors.items()})
    lengths = [dims[name] for name in ("T", "TQ", "TK") if name in dims]
    assert set(lengths) == {70}
    assert {size: dims[size] for size in sizes} == sizes


@pytest.mark.parametrize("name", NAMES)
def test_every_knob_is_documented_and_matters(name: str) -> None:
    preset = find(name)
    assert preset.summary.endswith(".")
    assert all(len(knob.meaning) > 10 for knob in preset.knobs)


CHANGES = {
    "full": ["causal", "softcap", "sink"],
    "streaming": ["window", "sinks"],
    "msa": ["pattern", "window", "sinks", "slots", "slot_origin", "slot_softmax"],
    "longformer": ["window", "global_tokens", "causal"],
    "bigbird": ["block", "window_blocks", "global_blocks", "random_blocks", "seed", "causal"],
    "hsa": ["chunk", "k", "weights", "sink", "landmark", "retrieval", "window"],
    "nsa": ["block", "k", "size", "window", "selection", "importance", "branches", "kv", "gates"],
    "moba": ["block", "k"],
    "linear": ["raw", "initial", "final"],
    "retnet": ["initial", "final"],
    "mamba2": ["shared", "raw"],
    "gla": ["raw"],
    "hgrn2": ["lower", "raw"],
    "deltanet": ["raw"],
    "gdn": ["shared", "raw", "initial", "final"],
    "delta_product": ["steps", "gated", "negative", "raw"],
    "kda": ["shared", "bound", "raw"],
    "gdn2": ["raw"],
    "rwkv7": ["raw"],
    "row_sparse": ["rows", "gated", "freeze"],
    "sse": ["parts", "k", "rule", "balance", "literal", "raw", "initial", "final"],
    "sse_gdn": ["parts", "k", "balance", "literal", "raw", "initial", "final"],
    "lola": ["window", "keep", "chunk", "features"],
    "rsa": ["levels", "parts", "branching", "k", "routing", "left", "rule", "clip", "readout", "top"],
    "infllm2": ["block", "k", "init_blocks", "window", "count_forced"],
    "fox": ["window", "gates"],
    "minimax": ["block", "k", "training"],
    "dsa": ["k", "training"],
    "evermind": ["document", "k", "score", "heads"],
}


def other(knob: Knob) -> object:
    """A legal value that is not the default."""
    if knob.name in WORDS or knob.choices:
        return next(word for word in WORDS.get(knob.name) or knob.choices if word != knob.default)
    if isinstance(knob.default, bool):
        return not knob.default
    assert isinstance(knob.default, int | float)
    return knob.default * 2 if knob.default else 0.5 if isinstance(knob.default, float) else 2


@pytest.mark.parametrize(("name", "knob"), [(name, knob) for name, knobs in CHANGES.items() for knob in knobs])
def test_a_knob_changes_the_graph(name: str, knob: str) -> None:
    value = other(next(k for k in find(name).knobs if k.name == knob))
    extra = {"k": 128} if (name, knob) == ("infllm2", "window") else {}
    assert sparsec.preset(name, **{knob: value}, **extra).digest != sparsec.preset(name, **extra).digest


REFUSED: dict[str, tuple[str, dict[str, object], str]] = {
    "more parts than there are": ("sse", {"parts": 2, "k": 3}, "only 2 to choose from"),
    "unknown preset": ("hasa", {}, "did you mean `hsa`"),
    "a full name": ("gated_deltanet", {}, "did you mean `gdn`"),
    "a name of two": ("Mamba", {}, "did you mean `mamba1` or `mamba2`"),
    "unknown knob": ("hsa", {"chunks": 64}, "did you mean `chunk`"),
    "a word that is none": ("hsa", {"weights": "sticks"}, "did you mean `stick`"),
    "a text for a number": ("hsa", {"chunk": "64"}, "of type int"),
    "a bool for a number": ("hsa", {"chunk": True}, "of type int"),
    "below zero": ("streaming", {"sinks": -1}, "it is at least 0"),
    "below one": ("hsa", {"chunk": -3}, "it is at least 1"),
    "k = 0": ("hsa", {"k": 0}, "k = 0: it must be at least 1"),
    "chunk = 0": ("hsa", {"chunk": 0}, "0"),
    "k below the forced": ("nsa", {"k": 2}, "k counts the 3 forced blocks"),
    "k below the local": ("infllm2", {"k": 8}, "k counts the 34 forced blocks"),
    "block and stride": ("nsa", {"block": 40}, "block must be divisible by the summary stride"),
    "size and stride": ("nsa", {"size": 40}, "size must be divisible by the summary stride"),
    "block and stride of InfLLM": ("infllm2", {"block": 60}, "divisible by the stride"),
    "half a pool": ("evermind", {"document": 96}, "a document holds whole pools"),
    "a pattern that is none": ("msa", {"pattern": "window+dilate"}, "did you mean `dilated`"),
    "a branch that is none": ("nsa", {"branches": "slc+swc"}, "did you mean `s"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str) -> None:
    name, knobs, said = REFUSED[case]
    with pytest.raises(DeclarationError) as caught:
        sparsec.preset(name, **knobs)
    assert said in str(caught.value)


def test_knobs_from_words() -> None:
    assert parse_knobs("hsa", ["chunk=32", "outside_window=true", "weights=softmax"]) == {
        "chunk": 32,
        "outside_window": True,
        "weights": "softmax",
    }


@pytest.mark.parametrize(
    ("word", "said"), [("chunk=many", "of type int"), ("outside_window=2", "true or false"), ("chnk=1", "`chunk`")]
)
def test_words_that_are_no_knobs(word: str, said: str) -> None:
    with pytest.raises(DeclarationError, match=said):
        parse_knobs("hsa", [word])


def test_hsa_of_the_demo_needs_only_q_k_v() -> None:
    assert list(sparsec.preset("hsa", landmark="mean", retrieval="group_mean").inputs) == ["q", "k", "v"]


def test_every_preset_file_is_listed() -> None:
    spec = importlib.util.find_spec("sparsec.frontends.presets")
    assert spec is not None and spec.submodule_search_locations is not None
    assert {module.name for module in pkgutil.iter_modules(spec.submodule_search_locations)} == set(NAMES)
