"""Real inputs from a file: what is read, what is made, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy
import pytest
import torch

import sparsec
from sparsec.autotune.job.given import load, runs
from sparsec.ir.error import InputError

TOKENS, HEADS, KV_HEADS, DIM = 37, 4, 2, 8


@pytest.fixture
def file(tmp_path: Path) -> Path:
    generator = numpy.random.default_rng(0)
    arrays = {"q": HEADS, "k": KV_HEADS, "v": KV_HEADS}
    path = tmp_path / "real.npz"
    drawn = {n: generator.standard_normal((TOKENS, h, DIM)).astype(numpy.float16) for n, h in arrays.items()}
    numpy.savez(path, **drawn)  # type: ignore[arg-type]
    return path


def test_a_missing_batch_is_added_and_values_are_kept(file: Path) -> None:
    given = load(file, sparsec.preset("full"))
    with numpy.load(file) as arrays:
        assert torch.equal(given.tensors["q"], torch.from_numpy(arrays["q"])[None].float())
    assert given.notes == ()


def test_slots_are_means_of_runs(file: Path) -> None:
    given = load(file, sparsec.preset("msa", slots=5, window=8))
    assert given.tensors["k_slots"].shape == (5, KV_HEADS, DIM)
    last = given.tensors["v"][0, -(TOKENS // 5) :].mean(0)
    assert torch.allclose(given.tensors["v_slots"][-1], last, atol=1e-6)
    assert "k_slots" in given.notes[0]


def test_carried_slots_keep_the_batch(file: Path) -> None:
    given = load(file, sparsec.preset("msa", slots=5, window=8, slot_origin="carried"))
    assert given.tensors["k_slots"].shape == (1, 5, KV_HEADS, DIM)


def test_runs_cover_every_token_once() -> None:
    x = torch.arange(10.0).reshape(1, 10, 1, 1)
    assert runs(x, 3, 4).flatten().tolist() == [1.5, 5.0, 8.0]


def test_what_cannot_be_made_is_named(file: Path) -> None:
    with pytest.raises(InputError, match=r"l: missing: real\.npz has q, k, v"):
        load(file, sparsec.preset("hsa", retrieval="group_mean"))


DOCUMENTS = """variant documents(q: [B,T,H,D], k: [B,T,HKV,D], v: [B,T,HKV,D],
                  document: [B,T] int32, slope: [H] float32) {
  m = tokens(k, v)
  own = mask(m, document=document) {where = (j <= i) & (document[b, i] == document[b, j])}
  return attend(q, m, own, slope=slope) {bias = score - slope[h] * (i - j)}
}"""


def test_inputs_have_their_declared_dtypes(tmp_path: Path) -> None:
    drawn = {n: numpy.zeros((9, h, 8)) for n, h in (("q", 2), ("k", 1), ("v", 1))}
    whole = {"document": numpy.arange(9), "slope": numpy.ones(2)}
    numpy.savez(tmp_path / "x.npz", **drawn, **whole)  # type: ignore[arg-type]
    given = load(tmp_path / "x.npz", sparsec.parse(DOCUMENTS), dtype=torch.float16).tensors
    assert {name: x.dtype for name, x in given.items()} == {
        "q": torch.float16, "k": torch.float16, "v": torch.float16, "document": torch.int32, "slope": torch.float32,
    }  # fmt: skip
    numpy.savez(tmp_path / "x.npz", **drawn, **{**whole, "document": numpy.ones(9)})  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"input document: dtype torch\.float64: the declaration says int32"):
        load(tmp_path / "x.npz", sparsec.parse(DOCUMENTS))


def test_a_file_that_is_no_archive_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.npz").write_text("hello")
    with pytest.raises(InputError, match=r"numpy\.savez"):
        load(tmp_path / "x.npz", sparsec.preset("full"))


def test_shapes_are_bound(file: Path) -> None:
    with pytest.raises(InputError, match="the declaration fixes 3"):
        load(file, sparsec.parse("variant v(q: [B, TQ, 3, D], k: [B, TK, HKV, D], v: [B, TK, HKV, DV]) {\n"
                                 "  m = tokens(k, v)\n  o = attend(q, m)\n  return o\n}\n"))  # fmt: skip
