"""Caches: pages from a pool, rings, running summaries, tokens taken back, cold pages in the host's memory."""

from __future__ import annotations

import pytest
import torch

import sparsec
from sparsec.ir.error import InputError
from sparsec.oracle.error import check
from sparsec.oracle.truth import oracle_rows
from sparsec.runtime.compiled import Compiled, compile
from sparsec.runtime.decode.pages import Pool, ring_table
from sparsec.testing.inputs.variants import small
from sparsec.testing.whole.decoding import LENGTH, STEPS, at, decoded, draw


@pytest.mark.parametrize("name", ["streaming", "hsa", "nsa", "msa-random"])
def test_sequences_of_different_lengths_share_a_pool(name: str) -> None:
    made, first, second = compile(small(name), "interpreter"), draw(small(name), 67, 1), draw(small(name), 50, 1)
    pool = Pool(9, 16)
    cache = made.init_cache(2, 96, pool=pool, step=8, deterministic=True)
    shared = {n: x for n, x in first.items() if n not in (*made.decoder.spec.fresh, *_kept(made))}
    second |= shared
    one = decoded(made, cache.sequences(0), first, [61])
    two = decoded(made, cache.sequences(1), second, [44])
    steps = []
    for n in range(6):
        a, b = at(made, first, 61 + n, 62 + n), at(made, second, 44 + n, 45 + n)
        both = {k: x if k in shared else _stacked(a[k], b[k]) for k, x in a.items()}
        out = made.decode(cache, **both)
        steps.append(out if isinstance(out, torch.Tensor) else out[0])
    last = torch.cat(steps, dim=1)
    alone = [made.init_cache(1, 96, page=16, step=8, deterministic=True) for _ in range(2)]
    for k, (own, inputs, done) in enumerate(zip(alone, (first, second), (one, two), strict=True)):
        whole = decoded(made, own, inputs, [own_length := done[0].shape[1], *[1] * 6])
        assert torch.equal(whole[0][:, :own_length], done[0]) and torch.equal(whole[0][:, own_length:], last[k : k + 1])
    assert cache.known_lengths == (67, 50)


@pytest.mark.parametrize(("steps", "page"), [((50,), 64), ((20, 29, 1), 64), ((50,), 16)])
def test_a_chunk_may_go_on_past_the_last_page(steps: tuple[int, ...], page: int) -> None:
    """Of a chunk of 128 tokens only those that a cache has room for have pages; the table is read for all of it."""
    made = compile(sparsec.preset("minimax", block=128, k=1), "interpreter")
    inputs = draw(made.variant, 50, 1)
    cache = made.init_cache(1, 50, page=page)
    expected = made(**inputs)
    assert isinstance(expected, torch.Tensor)
    torch.testing.assert_close(decoded(made, cache, inputs, list(steps))[0], expected, rtol=1e-5, atol=1e-5)


def test_windows_of_a_summary_that_a_cache_has_no_page_for() -> None:
    """As many programs as the new tokens could touch windows, one of them beyond the table."""
    made = compile(small("moba"), "interpreter")
    inputs = draw(made.variant, 24, 2)
    cache = made.init_cache(2, 32, page=16)
    expected = made(**inputs)
    assert isinstance(expected, torch.Tensor)
    torch.testing.assert_close(decoded(made, cache, inputs, [20, 4])[0], expected, rtol=1e-5, atol=1e-5)


def _kept(made: Compiled) -> list[str]:
    return [k.name for k in made.decoder.spec.kept]


def _stacked(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Rows of two sequences; one that completes no chunk brings a row that is not read."""
    rows = max(a.shape[1], b.shape[1])
    pad = [torch.cat([x, torch.full((1, rows - x.shape[1], *x.shape[2:]), 1e3, dtype=x.dtype)], 1) for x in (a, b)]
    return torch.cat(pad, dim=0)


def test_a_sequence_that_ends_gives_its_pages_back() -> None:
    made, inputs = compile(small("hsa"), "interpreter"), draw(small("hsa"), LENGTH, 1)
    pool = Pool(5, 16)
    cache = made.init_cache(2, 96, pool=pool, deterministic=True)
    expected = decoded(made, cache.sequences(0), inputs, [LENGTH])
    assert pool.free == 0
    with pytest.raises(InputError, match="pool of 5 pages has 0 left"):
        made.decode(cache.sequences(1), **at(made, inputs, 0, 1))
    cache.sequences(0).free()
    assert pool.free == 5 and cache.known_lengths == (0, 0)
    assert torch.equal(decoded(made, cache.sequences(1), inputs, STEPS)[0], expected[0])


def test_new_lengths_build_no_kernel() -> None:
    """There are two sets of kernels: for few new tokens and for many."""
    made, inputs = compile(small("nsa"), "interpreter"), draw(small("nsa"), LENGTH)
    cache = made.init_cache(2, 96)
    decoded(made, cache, inputs, [1, 20])
    before = made.builds
    decoded(made, cache, inputs, [3, 30, 1, 12])
    assert made.builds == before


@pytest.mark.parametrize("name", ["full", "hsa", "nsa", "nsa-given", "moba", "documents"])
def test_a_cache_takes_the_bytes_that_its_spec_says(name: str) -> None:
    made = compile(small(name), "interpreter")
    cache = made.init_cache(3, 96, page=16)
    made.decode(cache, **at(made, draw(small(name), 2, 3, "bfloat16"), 0, 2))
    tables = sum(x.numel() * x.element_size() for x in cache.tables.values())
    dims = {"H": 4, "HKV": 2, "D": 16, "DV": 16, "DR": 16}
    assert cache.nbytes - tables == 3 * made.decoder.spec.nbytes(dims, 96, item=2)


def test_rings_do_not_grow() -> None:
    made = compile(small("streaming"), "interpreter")
    sizes = []
    for most in (512, 4096):
        cache = made.init_cache(1, most, page=16, step=8)
        decoded(made, cache, draw(small("streaming"), 9, 1), [9])
        sizes.append(sum(x.numel() for x in cache.tensors.values()))
    assert sizes[0] == sizes[1] == (1 + 3) * 16 * 2 * 2 * 16
    assert ring_table(64, 16, 24, 3, 8) == ([0, 1, 2, 3], 4)
    assert ring_table(160, 16, 24, 0, 8) == ([0, 1, 2, 0, 1, 2, 0, 1, 2, 0], 3)


def test_only_touched_windows_are_written() -> None:
    """Summaries are updated, not recomputed: what is settled may be changed behind the kernels' back and stays so."""
    made, inputs = compile(small("nsa"), "interpreter"), draw(small("nsa"), LENGTH)
    cache = made.init_cache(2, 96, page=16, deterministic=True)
    decoded(made, cache, inputs, [60])
    name = next(n for n in cache.tensors if n.startswith("summaries"))
    marked = cache.tensors[name]
    marked[0, 0] = 7.0
    decoded(made, cache, inputs, [1, 5])
    assert bool((marked[0, 0] == 7.0).all())


def test_tokens_can_be_taken_back() -> None:
    """As after a draft that was refused."""
    made, inputs = compile(small("nsa"), "interpreter"), draw(small("nsa"), LENGTH)
    caches = [made.init_cache(2, 96, page=16, deterministic=True) for _ in range(2)]
    for cache in caches:
        decoded(made, cache, inputs, [40])
    wrong = {n: x.flip(1) for n, x in inputs.items()}
    decoded(made, caches[0], wrong, [5])
    caches[0].rewind(5)
    one, other = (decoded(made, cache, inputs, [1, 20]) for cache in caches)
    assert torch.equal(one[0], other[0])
    with pytest.raises(InputError, match="rewind fewer"):
        caches[0].rewind(90)


def test_cold_pages_change_nothing_but_where_they_are() -> None:
    made, inputs = compile(small("hsa"), "interpreter"), draw(small("hsa"), LENGTH)
    cold, warm = (made.init_cache(2, 96, cold=flag) for flag in (True, False))
    assert torch.equal(decoded(made, cold, inputs, STEPS)[0], decoded(made, warm, inputs, STEPS)[0])
    assert cold.cold_nbytes == 2 * 2 * 128 * 2 * 16 * 4 and cold.nbytes + cold.cold_nbytes == warm.nbytes
    with pytest.raises(InputError, match="no input that is read by chosen chunks alone"):
        compile(small("streaming"), "interpreter").init_cache(1, 64, cold=True)


def test_a_million_tokens_need_no_more_than_their_landmarks() -> None:
    """Near-constant memory where kernels run: a 64th of the tokens' landmarks; the rest is cold."""
    length, variant = 2**20, sparsec.preset("hsa")
    made, sizes = compile(variant, "interpreter"), {"H": 2, "HKV": 1, "D": 16, "DV": 16, "DR": 16, "DI": 16}
    inputs = draw(variant, 1, 1) | {"r": torch.randn(1, 1, 1, 16), "q": torch.randn(1, 1, 2, 16)}
    inputs |= {"k": torch.randn(1, 1, 1, 16), "v": torch.randn(1, 1, 1, 16)}
    cache = made.init_cache(1, length, cold=True, deterministic=False)
    step = {n: x for n, x in inputs.items() if n != "l"}
    made.decode(cache, **step, l=torch.zeros(1, 0, 1, 16))
    for name, x in cache.tensors.items():
        x.copy_(torch.randn(x.shape, generator=torch.Generator().manual_seed(len(name))))
    cache.replayed(length - 2)
    lengths = cache.lengths
    assert lengths is not None
    lengths += length - 2
    out = made.decode(cache, **step, l=torch.randn(1, 1, 1, 16))
    whole = {n: x.reshape(1, -1, 1, 16) for n, x in cache.tensors.items()}
    truth = oracle_rows(variant, {"q": inputs["q"], "r": inputs["r"], **whole}, [0], q_offset=length - 1)
    assert isinstance(out, torch.Tensor) and isinstance(truth, torch.Tensor)
    verdict = check(out, truth, "float32", "o")
    assert verdict, verdict.sentence
    assert sizes["D"] * 4 * length // 64 <= cache.nbytes < 2 * sizes["D"] * 4 * length // 64 < cache.cold_nbytes // 50
