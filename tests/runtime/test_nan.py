"""A NaN in an input shows wherever the oracle says, and goes nowhere else but where one tile of values is read.

What docs/reference.md ("NaN") says: it is never hidden; it never reaches another sequence, document or group of heads;
and beyond the rows that the oracle names it reaches only those whose program reads the same tile.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

import sparsec
from sparsec.ir.variant import Variant, dim_names
from sparsec.oracle import oracle
from sparsec.runtime.compiled import Compiled, compile
from sparsec.runtime.inputs import sizes
from sparsec.runtime.packed.inputs import packed_inputs
from sparsec.testing.inputs.recurrent import RECURRENT, ROUTES, draw
from sparsec.testing.inputs.variants import EVERY, small

TOKENS, AT, TILE = 100, 80, 64
"""A sequence of two tiles, the token with a NaN, rows of a tile."""
SIZES: dict[str, Any] = {"H": 4, "HKV": 2, "D": 16, "DV": 16}
WHOLE = {"longformer-dilated", "bigbird-everywhere", "nsa", "nsa-separate-literal", "nsa-given"}
"""Small variants whose rows read a tile of summaries, or keys of blocks far away: any row of a sequence may read it."""
TOUCHED = ("parts that decay at rest", "lists per head", "delta from given states", "slots apart")
"""Banks that touch parts with a weight of 0: those that rest but decay, and one for a slot of a list that is empty."""


def several(found: Tensor | tuple[Tensor, ...]) -> list[Tensor]:
    """Outputs."""
    return [found] if isinstance(found, Tensor) else list(found)


def spoilt(inputs: dict[str, Tensor], name: str, token: int, length: int) -> dict[str, Tensor]:
    """One NaN: of the first sequence and head, at a token or in the first row of what has none."""
    x = inputs[name].clone()
    by_token = x.ndim > 1 and x.shape[1] == length
    x[(0, token) if by_token else (0,) * min(x.ndim, 2)].view(-1)[0] = torch.nan
    return {**inputs, name: x}


def compared(compiled: Compiled, inputs: dict[str, Tensor], form: str) -> list[tuple[Tensor, Tensor]]:
    """Where kernels have a NaN, and where the oracle."""
    truth = several(oracle(compiled.variant, inputs, form=form))  # type: ignore[call-overload]
    return [(f.isnan(), t.isnan()) for f, t in zip(several(compiled(None, **inputs)), truth, strict=True)]


def floats(inputs: dict[str, Tensor]) -> list[str]:
    return [name for name, x in inputs.items() if x.is_floating_point()]


@pytest.mark.parametrize("name", EVERY)
def test_attention_shows_nan_and_keeps_it_within_a_tile(name: str) -> None:
    """Beyond the oracle's rows: of values alone, in their column, of heads that read them, in rows of their tile."""
    compiled = compile(small(name), "interpreter")
    given = sparsec.inputs(compiled.variant, B=2, T=TOKENS, **SIZES)
    for spoiling in floats(given):
        for found, truth in compared(compiled, spoilt(given, spoiling, AT, TOKENS), "vector"):
            assert bool(found[truth].all()), f"{spoiling} is hidden"
            stray = found & ~truth
            if spoiling.startswith("v") and found.ndim == 4:
                stray[0, 0 if name in WHOLE else TILE :, :2, 0] = False
            assert not bool(stray.any()), f"{spoiling} strays to {stray.nonzero()[:3].tolist()}"


LENGTH, CHUNK = 40, 32


@cache
def recurrence(name: str) -> tuple[Compiled, dict[str, Tensor]]:
    """A recurrence and inputs."""
    if name in RECURRENT or name in ROUTES:
        variant = sparsec.parse({**RECURRENT, **ROUTES}[name])
        given = draw(variant, {"B": 2, "T": LENGTH, "DX": 16, **SIZES})
    else:
        variant = sparsec.preset(name)
        given = sparsec.inputs(variant, B=2, T=LENGTH, **{n: s for n, s in SIZES.items() if n in dim_names(variant)})
    return compile(variant, "interpreter"), given


PRESETS = ("retnet", "mamba2", "gla", "hgrn2", "gdn", "kda", "rwkv7", "row_sparse", "sse", "sse_gdn", "rsa", "gsa")


@pytest.mark.parametrize("name", [n for n in (*RECURRENT, *ROUTES, *PRESETS) if n not in TOUCHED])
def test_states_walked_token_by_token_show_nan_where_the_oracle_does(name: str) -> None:
    compiled, given = recurrence(name)
    for spoiling in floats(given):
        for found, truth in compared(compiled, spoilt(given, spoiling, 20, LENGTH), "loop"):
            assert torch.equal(found, truth), spoiling


@pytest.mark.parametrize("name", TOUCHED)
def test_parts_of_weight_0_may_take_part_in_a_nan(name: str) -> None:
    compiled, given = recurrence(name)
    for spoiling in floats(given):
        for found, truth in compared(compiled, spoilt(given, spoiling, 20, LENGTH), "loop"):
            assert bool(found[truth].all()) and not bool((found & ~truth)[1].any()), spoiling


CHUNKED = (
    "linear",
    "scalar",
    "channel",
    "delta",
    "gated-delta",
    "channel-delta",
    "erase",
    "undecayed-erase",
    "learned",
)


@pytest.mark.parametrize("name", CHUNKED)
def test_states_read_by_chunks_keep_a_nan_within_the_chunk(name: str) -> None:
    """The default on GPUs: tokens before the chunk have none, nor do other heads and sequences; of v it has a column.

    Decays of -inf in the first chunk are worked out by a program of their own, whatever the second one has.
    """
    compiled, given = by_chunks(sparsec.parse(RECURRENT[name]))
    for spoiling in floats(given):
        for found, truth in compared(compiled, spoilt(given, spoiling, CHUNK + 4, LENGTH), "loop"):
            assert bool(found[truth].all()), f"{spoiling} is hidden"
            stray = found & ~truth
            if found.shape[1] == LENGTH:
                stray[0, CHUNK:, 0, slice(1) if spoiling == "v" else slice(None)] = False
            assert not bool(stray.any()), f"{spoiling} strays to {stray.nonzero()[:3].tolist()}"


def by_chunks(variant: Variant) -> tuple[Compiled, dict[str, Tensor]]:
    """A recurrence under schedules of chunks, with a state for each head, and inputs."""
    made, own = compile(variant, "interpreter"), {**SIZES, "H": 2, "B": 2, "T": LENGTH}
    dims = {**own, "TQ": LENGTH, "TK": LENGTH, "q_offset": 0}
    usual = {k.name: made.schedule(k, dims) for k in made.plan(dims, "float32").kernels}
    made.schedules = {n: replace(s, order="chunk", rows=CHUNK) if n.startswith("scan") else s for n, s in usual.items()}
    return made, draw(variant, own)


DOCUMENTS = [50, 37, 70]
PACKED = ("full", "streaming", "msa-strided-gated", "hsa", "nsa", "moba", "dsa", "infllm2", "fox")


@pytest.mark.parametrize(
    "name", [*PACKED, "linear", "gated-delta", "channel-delta", "routed", "sse", "gsa", "log_linear"]
)
def test_no_document_sees_the_nan_of_another(name: str) -> None:
    variant = small(name) if name in PACKED else recurrence(name)[0].variant
    compiled = compile(variant, "interpreter")
    ends, given, clean = documents(compiled)
    first, last = DOCUMENTS[0], sum(DOCUMENTS[:2]) - 1
    for spoiling in floats(given):
        if given[spoiling].shape[0] != sum(DOCUMENTS):
            continue
        for at in (first, last):
            x = given[spoiling].clone()
            x[at] = torch.nan if at == first else torch.inf
            for found, truth in zip(several(compiled(cu_seqlens=ends, **{**given, spoiling: x})), clean, strict=True):
                own = slice(first, last + 1) if len(truth) == sum(DOCUMENTS) else slice(1, 2)
                found[own] = truth[own]
                assert torch.equal(found, truth), spoiling


def documents(compiled: Compiled) -> tuple[Tensor, dict[str, Tensor], list[Tensor]]:
    """Ends, inputs and outputs of three documents."""
    known = {n: s for n, s in {**SIZES, "DX": 16}.items() if n in dim_names(compiled.variant)}
    dims = {**sizes(compiled.variant, known), "q_offset": 0}
    given = packed_inputs(compiled, DOCUMENTS, dims, "float32", 0)
    ends = given.pop("cu_seqlens")
    return ends, given, several(compiled(cu_seqlens=ends, **given))


DECODED = ("full", "streaming", "msa-window", "hsa-mean", "nsa", "moba", "dsa", "fox")


@pytest.mark.parametrize("name", [*DECODED, "linear", "delta", "gdn", "sse", "gsa"])
def test_no_sequence_of_a_cache_sees_the_nan_of_another_nor_of_the_one_before(name: str) -> None:
    """A freed sequence leaves its pages and states to the next one."""
    variant = small(name) if name in DECODED else recurrence(name)[0].variant
    compiled = compile(variant, "interpreter")
    given = sparsec.inputs(variant, B=2, T=24, **{n: s for n, s in SIZES.items() if n in dim_names(variant)})
    tokens = {n for n, x in given.items() if x.shape[:2] == (2, 24)}
    bad = {n: x.clone() for n, x in given.items()}
    for n in tokens:
        bad[n][0, 5:9] = torch.nan
    caches = [compiled.init_cache(batch=2, max_length=32, page=16) for _ in range(2)]

    def both(a: int, b: int, rows: slice) -> list[Tensor]:
        """A step of the clean cache and of the other, for some sequences."""
        found = []
        for own, x in zip(caches, (given, bad if rows == slice(None) else given), strict=True):
            step = {n: t[rows, a:b] if n in tokens else t for n, t in x.items()}
            found.append(several(compiled.decode(own if rows == slice(None) else own.sequences(0), **step))[0])
        return found

    for a, b in ((0, 20), (20, 21)):
        clean, found = both(a, b, slice(None))
        assert bool(found[0].isnan().any()) and torch.equal(clean[1], found[1])
    for own in caches:
        own.sequences(0).free()
    for a, b in ((0, 3), (3, 4)):
        clean, found = both(a, b, slice(0, 1))
        assert torch.equal(clean, found)


@pytest.mark.parametrize("name", ["streaming", "hsa-mean", "nsa", "moba", "dsa", "gated-delta", "kda", "sse"])
def test_no_gradient_of_a_sequence_sees_the_nan_of_another(name: str) -> None:
    if name in (*RECURRENT, *PRESETS):
        compiled, given = recurrence(name)
    else:
        compiled = compile(small(name), "interpreter")
        given = sparsec.inputs(compiled.variant, B=2, T=LENGTH, **SIZES)
    own = [n for n in floats(given) if given[n].ndim > 2 and given[n].shape[0] == 2]
    found = []
    spoiling = "v" if "v" in own else own[-1]
    for x in (given, spoilt(given, spoiling, 20, LENGTH)):
        leaves = {n: t.clone().requires_grad_(n in own) for n, t in x.items()}
        several(compiled(None, **leaves))[0].sum().backward()
        found.append({n: leaves[n].grad for n in own})
    for n in own:
        clean, spoilt_one = (f[n] for f in found)
        if clean is None or spoilt_one is None:
            continue
        assert torch.equal(clean[1], spoilt_one[1]), n
    assert any(f is not None and bool(f.isnan().any()) for f in found[1].values())


def test_a_router_shows_nan() -> None:
    """Once it chose no part, and a NaN went away without a word."""
    compiled, given = recurrence("routed")
    for name in ("y", "w"):
        assert bool(several(compiled(None, **spoilt(given, name, 20, LENGTH)))[0].isnan().any())


def declared() -> Variant:
    """A row of logits of which the largest few are kept."""
    return sparsec.parse("variant few(x: [B,T,H,D]) { return map(x) {row = softmax, top = 3} }")


@pytest.mark.parametrize("target", ["interpreter", "cpu"])
def test_the_largest_few_show_nan(target: str) -> None:
    """Once they were none, and the softmax over them the same number everywhere."""
    variant = declared()
    x = torch.randn(1, 4, 2, 16)
    x[0, 1, 0, 3] = torch.nan
    found = several(compile(variant, target)(None, x=x))[0].isnan()
    assert torch.equal(found, several(oracle(variant, {"x": x}))[0].isnan()) and int(found.sum()) == 16


def test_a_tuner_takes_no_nan() -> None:
    layer = sparsec.compile(small("streaming"), target="cpu")
    given = sparsec.inputs(layer.variant, B=1, T=TOKENS, **SIZES)
    with pytest.raises(sparsec.InputError, match=r"v: a NaN: .* Fix: tune on inputs without"):
        layer.tune(spoilt(given, "v", AT, TOKENS), trials=1)
