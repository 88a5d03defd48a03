"""Files of state memories check themselves on numbers that states bear, by the recurrence and by chunks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import sparsec
from sparsec.cli import main
from sparsec.runtime.exported.host import fitting, noise
from sparsec.runtime.inputs import kinds
from sparsec.testing.whole.by_chunks import by_chunks

WORDS = ["H=2", "HKV=2", "D=16", "DV=16", "--target", "cpu", "--dtype", "float32"]
FILES: dict[str, list[str]] = {
    "raw keys": ["gdn", "raw=true"],
    "documents": ["gdn", "--packed"],
    "parts of documents": ["sse_gdn", "DX=16", "--packed"],
    "steps of documents": ["delta_product", "--packed"],
}


@pytest.mark.parametrize("chunks", [False, True], ids=["recurrence", "chunks"])
@pytest.mark.parametrize("which", FILES)
def test_a_file_finds_itself_right(which: str, chunks: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Raw keys were long enough for infinite states, and chunks know no log-decays above 0."""
    if chunks:
        by_chunks(monkeypatch)
    path = tmp_path / "exported.py"
    assert main(["compile", *FILES[which], *WORDS, "--out", str(path)]) == 0
    names: dict[str, Any] = {"__name__": "exported"}
    exec(compile(path.read_text(), str(path), "exec"), names)
    assert ("_starts" in path.read_text()) is chunks and names["self_check"]() < 1e-5


def test_what_inputs_have_to_be() -> None:
    assert kinds(sparsec.preset("gdn", raw=True)) == {"k": "key", "beta": "rate", "g": "decay"}
    assert kinds(sparsec.preset("lola")) == {"fq": "feature", "fk": "feature"}
    assert kinds(sparsec.preset("streaming")) == {}
    x = noise((4, 8), 0)
    assert torch.equal(fitting(x, "decay"), -x.abs()) and torch.equal(fitting(x, "feature"), x.abs())
    rates = fitting(x, "rate")
    assert float(rates.min()) > 0 and float(rates.max()) < 1
    torch.testing.assert_close(fitting(x, "key").norm(dim=-1), torch.ones(4))
