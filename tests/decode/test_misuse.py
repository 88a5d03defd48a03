"""What would be read wrong says so: tokens taken back twice, other tokens than before, lists and captures astray."""

from __future__ import annotations

import pytest
import torch

import sparsec
from sparsec.ir.error import DeclarationError, InputError
from sparsec.passes.stream import stream
from sparsec.runtime.compiled import Compiled, compile
from sparsec.runtime.decode.cache_state import Cache
from sparsec.testing.inputs.variants import small
from sparsec.testing.whole.decoding import LENGTH, at, decoded, draw, forward

PEEKS = """
variant peeks(q: [B, T, H, D], k: [B, T, HKV, D], v: [B, T, HKV, DV], ids: [B, T] int32) {
  memory = tokens(k, v)
  return attend(q, memory, mask(memory, ids=ids) {where = (j <= i) & (ids[b, INDEX] <= ids[b, i])})
}
"""


def begun(name: str, max_length: int = 96) -> tuple[Compiled, dict[str, torch.Tensor], Cache]:
    """A variant, its tokens and a cache of the first 20 of them."""
    made, inputs = compile(small(name), "interpreter"), draw(small(name), LENGTH)
    cache = made.init_cache(2, max_length, page=16, step=8, deterministic=True)
    decoded(made, cache, inputs, [20])
    return made, inputs, cache


def test_tokens_taken_back_again_and_again() -> None:
    """A ring keeps what ``step`` tokens replaced, however many rewinds there are; until new tokens join."""
    made, inputs, cache = begun("streaming")
    decoded(made, cache, inputs, [40])
    cache.rewind(5)
    with pytest.raises(InputError, match="5 were forgotten already"):
        cache.rewind(4)
    cache.rewind(3)
    decoded(made, cache, inputs, [8])
    cache.rewind(8)
    assert torch.equal(decoded(made, cache, inputs, [1, 9])[0], forward(made, inputs)[0][:, 52:62])
    cache.free()
    decoded(made, cache, inputs, [20])
    cache.rewind(8)
    assert cache.known_lengths == (12, 12)


def test_tokens_unlike_those_before() -> None:
    made, inputs, cache = begun("streaming")
    wider = {n: torch.cat([x, x], -1) for n, x in inputs.items()}
    folded = {n: x[:, :, : x.shape[2] // 2].repeat(1, 1, 1, 2) for n, x in inputs.items()}
    halves = {n: x.half() for n, x in inputs.items()}
    for other, words in ((wider, r"\[2, 32\]"), (folded, r"\[1, 32\]"), (halves, "float16")):
        with pytest.raises(InputError, match=f"rows of .*{words}.*: the cache has rows of float32"):
            made.decode(cache, **at(made, other, 20, 21))
    with pytest.raises(InputError, match="tokens are"):
        made.decode(cache, **{n: torch.zeros(3) for n in inputs})
    assert cache.known_lengths == (20, 20)


def test_tokens_of_several_passes_join_together_or_not_at_all() -> None:
    made, inputs, cache = begun("streaming", 50)
    with pytest.raises(InputError, match="was made for 50 tokens"):
        made.decode(cache, **at(made, inputs, 20, LENGTH))
    assert cache.known_lengths == (20, 20)


def test_given_lists_name_chunks_of_the_cache() -> None:
    made, inputs, cache = begun("nsa-given")
    step = at(made, inputs, 20, 21)
    for wrong in (-2, 6):
        with pytest.raises(InputError, match="values go from -1 to 5"):
            made.decode(cache, **{**step, "indices": torch.full_like(step["indices"], wrong)})


def test_a_graph_is_given_rows_of_chunks() -> None:
    """Those of a later call would have no place in it."""
    made, inputs, cache = begun("hsa")
    for step in (at(made, inputs, 20, 21), {n: x for n, x in at(made, inputs, 20, 21).items() if n != "l"}):
        with pytest.raises(InputError, match="may complete 1 chunks of 16"):
            made.decode_graph(cache, **step)


@pytest.mark.parametrize("index", ["j + 1", "minimum(i + 1, 66)", "j // 4 * 4 + 3", "ids[b, j]"])
def test_a_capture_of_a_later_token_is_refused(index: str) -> None:
    with pytest.raises(DeclarationError, match="may be a later token's"):
        stream(compile(sparsec.parse(PEEKS.replace("INDEX", index)), "interpreter").graph)


def test_sums_over_tokens_that_only_queries_have_are_refused() -> None:
    text = """variant faded(q: [B, TQ, H, D], k: [B, TK, HKV, D], v: [B, TK, HKV, DV], f: [B, TQ, H] float32) {
      memory = tokens(k, v)
      sums = prefix(f)
      return attend(q, memory, mask(memory) {where = j <= i}, sums=sums) {bias = score - sums[b, j, h]}
    }"""
    with pytest.raises(DeclarationError, match=r"sums.*a step has its new rows alone.*is made of with TK rows"):
        stream(sparsec.parse(text))


@pytest.mark.parametrize("index", ["j", "maximum(j - 1, 0)", "minimum(i, j)", "j // 4"])
def test_a_capture_of_an_earlier_token_is_not(index: str) -> None:
    variant = sparsec.parse(PEEKS.replace("INDEX", index))
    made, inputs = compile(variant, "interpreter"), draw(variant, LENGTH)
    cache = made.init_cache(2, 96, page=16, step=8, deterministic=True)
    assert torch.equal(decoded(made, cache, inputs, [40, 1, 26])[0], forward(made, inputs)[0])


LANDMARKS = """
variant landmarks(q: [B, T, H, D], k: [B, T, HKV, D], v: [B, T, HKV, DV], l: [B, (T + 15) // 16, HKV, D]) {
  memory = tokens(k, v) {chunk = 16}
  scores = score(q, l)
  chosen = topk(scores) {k = 2, size = 16, scope = head, eligible = 16 * c + 16 <= i}
  return attend(q, memory, chosen)
}
"""


def test_rows_of_completed_chunks_may_not_be_left_out() -> None:
    made = compile(sparsec.parse(LANDMARKS), "interpreter")
    x = sparsec.inputs(made.variant, B=1, T=40, H=2, HKV=1, D=16, DV=16)
    tokens = {name: x[name] for name in ("q", "k", "v")}
    cache = made.init_cache(1, 64, page=16)
    with pytest.raises(InputError, match="complete 2 chunks of 16 tokens"):
        made.decode(cache, **tokens)
    assert cache.known_lengths in ((), (0,))
    made.decode(cache, **{n: t[:, :15] for n, t in tokens.items()})


def test_a_step_takes_tokens_as_they_are_under_autocast() -> None:
    text = """
variant unit_keys(q: [B, T, H, D], k: [B, T, HKV, D], v: [B, T, HKV, DV]) {
  u = map(k) {row = l2norm}
  memory = tokens(u, v)
  return attend(q, memory, mask(memory) {where = j <= i})
}
"""
    made = compile(sparsec.parse(text), "interpreter")
    x = sparsec.inputs(made.variant, B=1, T=9, H=2, HKV=1, D=16, DV=16)
    plain = made.decode(made.init_cache(1, 32), **x)
    with torch.autocast("cpu"):
        cast = made.decode(made.init_cache(1, 32), **x)
    assert isinstance(plain, torch.Tensor) and isinstance(cast, torch.Tensor) and torch.equal(cast, plain)


def test_a_cache_of_another_declaration() -> None:
    """Where names agree it would decode silently; an equal declaration, whatever it is called, shares caches."""
    made, inputs, cache = begun("streaming")
    tokens, knobs = at(made, inputs, 20, 21), dict(made.variant.knobs)
    for window in (3, 99):
        other = compile(sparsec.preset("streaming", **{**knobs, "window": window}), "interpreter")
        with pytest.raises(InputError, match=r"made for streaming: .* of another .*init_cache of this"):
            other.decode(cache, **tokens)
    with pytest.raises(InputError, match="a dict: decode writes into a cache"):
        made.decode({}, **tokens)  # type: ignore[arg-type]
    assert cache.known_lengths == (20, 20)
    again = Compiled(sparsec.preset("streaming", **knobs), made.target)
    again.decode(cache.sequences(0, 2), **tokens)
    assert cache.known_lengths == (21, 21)
