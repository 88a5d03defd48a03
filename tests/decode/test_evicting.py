"""Decoding with a cache that evicts: prefill and steps are one forward, in memory that does not grow."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import sparsec
from sparsec.ir.error import InputError
from sparsec.oracle import check, oracle
from sparsec.runtime.decode.cache_state import Cache

KNOBS: dict[str, Any] = {"window": 8, "keep": 3, "chunk": 4}
SIZES: dict[str, Any] = {"B": 1, "H": 2, "HKV": 1, "D": 16, "DV": 16, "F": 16}


def compiled(target: str = "interpreter", **knobs: Any) -> sparsec.Compiled:
    return sparsec.compile(sparsec.preset("lola", **KNOBS | knobs), target=target)


def drawn(made: sparsec.Compiled, length: int = 33, dtype: str = "float32", **sizes: int) -> dict[str, Tensor]:
    every = {**SIZES, **sizes}
    own = {n: size for n, size in every.items() if n != "F" or "fq" in made.variant.inputs}
    return sparsec.inputs(made.variant, dtype=dtype, T=length, **own)


def steps(made: sparsec.Compiled, cache: Cache, x: dict[str, Tensor], first: int, counts: tuple[int, ...]) -> Tensor:
    found = list[Tensor]()
    for count in counts:
        out = made.decode(cache, **{name: t[:, first : first + count] for name, t in x.items()})
        assert isinstance(out, Tensor)
        found, first = [*found, out], first + count
    return torch.cat(found, 1)


def right(made: sparsec.Compiled, x: dict[str, Tensor]) -> Tensor:
    found = oracle(made.variant, x)
    assert isinstance(found, Tensor)
    return found


@pytest.mark.parametrize(
    ("dtype", "knobs"),
    [
        ("float32", {}),
        ("bfloat16", {}),
        ("float32", {"window": 0}),
        ("float32", {"keep": 21}),
        ("float32", {"features": "elu"}),
    ],
)
def test_a_prefill_and_steps_are_one_forward(dtype: str, knobs: dict[str, Any]) -> None:
    made = compiled(**knobs)
    x = drawn(made, dtype=dtype)
    cache = made.init_cache(1)
    early = steps(made, cache, x, 0, (17, 1))
    size, kept = cache.nbytes, cache.snapshot()
    late = steps(made, cache, x, 18, (1, 3, 1, 10))
    assert check(torch.cat([early, late], 1), right(made, x), dtype)
    assert cache.nbytes == size and cache.known_lengths == (33,)
    cache.restore(kept)
    assert torch.equal(steps(made, cache, x, 18, (1, 3, 1, 10)), late)


def test_sequences_have_lengths_of_their_own() -> None:
    """Chunks of the two end at different steps; several tokens are passes that end where a chunk of either does."""
    made = compiled()
    x = drawn(made, 30, B=2, H=4, HKV=2)
    truth, cache = right(made, x), made.init_cache(2)
    for number, first in ((0, 17), (1, 10)):
        alone = {name: t[number : number + 1] for name, t in x.items()}
        steps(made, cache.sequences(number), alone, 0, (first,))
    begun = cache.known_lengths
    assert begun == (17, 10)
    at = [list(range(n, n + 13)) for n in begun]
    later = {name: torch.stack([t[n, rows] for n, rows in enumerate(at)]) for name, t in x.items()}
    found = steps(made, cache, later, 0, (1, 1, 1, 1, 9))
    assert check(found, torch.stack([truth[n, rows] for n, rows in enumerate(at)]), "float32")


def test_a_sequence_begins_anew() -> None:
    made = compiled()
    x = drawn(made, 21)
    cache = made.init_cache(1)
    first = steps(made, cache, x, 0, (21,))
    cache.free()
    assert torch.equal(steps(made, cache, x, 0, (21,)), first)


def test_what_a_graph_captures_asks_for_no_length() -> None:
    made = compiled()
    x = drawn(made, 21)
    caches = made.init_cache(1), made.init_cache(1)
    found = [
        made.decoder.captured(caches[0], {n: t[:, at : at + 3] for n, t in x.items()})[0] for at in range(0, 21, 3)
    ]
    assert check(torch.cat(found, 1), right(made, x), "float32")
    with pytest.raises(InputError, match="graphs are CUDA's"):
        made.decode_graph(caches[1], **{n: t[:, :1] for n, t in x.items()})


def test_on_a_cpu() -> None:
    made = compiled("cpu")
    x = drawn(made, 19)
    assert check(steps(made, made.init_cache(1), x, 0, (16, 1, 2)), right(made, x), "float32")


def test_tokens_that_do_not_fit() -> None:
    made = compiled()
    x = drawn(made, 2)
    with pytest.raises(InputError, match="fk: missing: lola takes q, k, v, fk, fq"):
        made.decode(made.init_cache(1), **{name: t for name, t in x.items() if name != "fk"})
    with pytest.raises(InputError, match="3 sequences"):
        made.decode(made.init_cache(3), **x)
    with pytest.raises(InputError, match="no pages"):
        made.init_cache(1, page=64)
    cache = made.init_cache(1)
    steps(made, cache, x, 0, (2,))
    with pytest.raises(InputError, match=r"rows of k float32 \[15, 1, 32\].*has rows of k float32 \[15, 1, 16\]"):
        made.decode(cache, **drawn(made, 1, D=32))
