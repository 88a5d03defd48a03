"""The cache specification and the price of determinism on the command line."""

from __future__ import annotations

import pytest

from sparsec.cli import main


def shown(capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> str:
    """What the command prints."""
    assert main(("show", *words, "--level", "stream")) == code
    found = capsys.readouterr()
    return found.out + found.err


def test_a_cache_and_a_step_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    dims = ("B=1", "T=65536", "H=64", "HKV=4", "D=128", "DV=128", "DR=128")
    text = shown(capsys, "hsa", "--target", "triton:sm_90", *dims)
    assert "k: pages, D * HKV float per token, read by chosen chunks alone" in text
    assert "l: pages, DR * HKV float per 64 tokens" in text
    assert "attend_far: programs 32, then 64" in text and "deterministic: programs 4" in text


def test_memory_of_a_fixed_size_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    """320 rows of k, v and features in half precision, two tables, two states in fp32."""
    dims = ("B=2", "T=4096", "H=8", "HKV=2", "D=64", "DV=64", "F=64")
    text = shown(capsys, "lola", "--target", "triton:sm_90", *dims)
    assert f"bytes of a sequence: {320 * 2 * 3 * 128 + 2 * 2 * (320 + 64 * 64 + 64) * 4}" in text
    assert "take_in: programs 4, where a sequence begins a chunk of 64 tokens" in text
    assert "read_held: programs 4" in text


def test_a_refusal_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(capsys, "full", "causal=false", code=2)
    assert "shows keys after the query's own" in text and "Traceback" not in text
