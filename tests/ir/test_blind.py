"""Reads that see nothing at any length are refused where they are declared; those that may see something are not."""

from __future__ import annotations

import pytest

import sparsec

INPUTS = "q: [B, TQ, H, D], k: [B, TK, HKV, D], v: [B, TK, HKV, D]"
BLIND = {
    "a window of nothing": "{(j <= i) & (i - j < 0)}",
    "two masks that share no key": "{j <= i}, {j > i}",
    "a remainder that is none": "{(j <= i) & ((i - j) % 4 == 5)}",
    "a later block among earlier tokens": "{(j // 64 == i // 64 + 1) & (j <= i)}",
    "nothing or nothing": "{(j <= i) & (i - j < 0) | (j < 0)}",
}
SEEING = {
    "its own token": "{(j <= i) & (i - j < 1)}",
    "late queries alone": "{j <= i - 5000}",
    "later keys": "{i - j < 0}",
    "every fourth": "{(j <= i) & ((i - j) % 4 == 3)}",
    "sizes of the call": "{j < H - 1}",
}


def read(masks: str) -> str:
    written = masks.replace("{", "mask(memory) {where = ")
    return f"variant v({INPUTS}) {{ memory = tokens(k, v)  o = attend(q, memory, {written})  return o }}"


@pytest.mark.parametrize("masks", BLIND.values(), ids=BLIND)
def test_refused(masks: str) -> None:
    """The mask, its predicate, the rule and what to write."""
    with pytest.raises(sparsec.DeclarationError, match=r"mask: where = .*: no query sees any key.*Fix: show some"):
        sparsec.parse(read(masks))


@pytest.mark.parametrize("masks", SEEING.values(), ids=SEEING)
def test_legal(masks: str) -> None:
    """Some query sees some key at some length."""
    assert sparsec.parse(read(masks)).outputs


def test_a_branch_may_be_off() -> None:
    """Two windows of which one has no tokens are one window; two of none are nothing."""
    for size, legal in (("0", False), ("8", True)):
        text = f"""variant v({INPUTS}) {{
          memory = tokens(k, v)
          off = attend(q, memory, mask(memory) {{where = (j <= i) & (i - j < 0)}})
          o = merge(off, attend(q, memory, mask(memory) {{where = (j <= i) & (i - j < {size})}})) {{fn = lse}}
          return o
        }}"""
        if legal:
            assert sparsec.parse(text).outputs
        else:
            with pytest.raises(sparsec.DeclarationError, match="no query sees any key"):
                sparsec.parse(text)


def test_a_knob_of_no_size_is_named() -> None:
    """No bare ZeroDivisionError."""
    with pytest.raises(sparsec.DeclarationError, match=r"block = 0: .* at least 1\. Fix: block = 64"):
        sparsec.preset("infllm2", block=0)
    with pytest.raises(sparsec.DeclarationError, match=r"normaliser = 0\.0: logarithms of gates are divided by it"):
        sparsec.preset("gsa", normaliser=0.0)


def test_chunks_that_none_may_choose() -> None:
    """An eligibility that never holds, unless a chunk is forced."""
    for forced in ("", ", forced = c == 0"):
        text = f"""variant v({INPUTS}) {{
          memory = tokens(k, v) {{chunk = 16}}
          scores = reduce(score(q, summary(memory) {{size = 16, stride = 16}})) {{over = group}}
          chosen = topk(scores) {{k = 2, size = 16, eligible = (c * 16 <= i) & (c * 16 > i){forced}}}
          o = attend(q, memory, chosen, mask(memory) {{where = j <= i}})
          return o
        }}"""
        if forced:
            assert sparsec.parse(text).outputs
        else:
            with pytest.raises(sparsec.DeclarationError, match=r"topk `chosen`: eligible = .*no query sees any key"):
                sparsec.parse(text)
