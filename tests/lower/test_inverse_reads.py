"""How the programs that turn lists around cut them into segments, and how often they read them."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from sparsec.lower.inverse import index as inverse
from sparsec.lower.inverse import steps as inverse_steps
from sparsec.lower.registry import lower_kernel
from sparsec.scalar.expr import var
from sparsec.testing.kernels.gathered import Sizes, attention, draw, truth
from sparsec.testing.kernels.scratch import with_scratch
from sparsec.tile.interpreter import interpret
from sparsec.tile.language import Node, access_of
from sparsec.tile.memory import Memory
from sparsec.tile.schedule import Schedule


@pytest.mark.parametrize("more", [False, True])
def test_a_segment_is_read_once_where_one_look_finds_all_chunks(more: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only among more chunks somebody looks for the highest first; here nobody chose it, so there is no second look."""
    spec = attention(2, 1, (32, 32), scope="head", slots=3, chunk=16, dtype="float32")
    n = Sizes(tq=40, tk=spec.chunk * inverse_steps.CHUNKS + more, offset=spec.chunk * inverse_steps.CHUNKS + more - 40)
    x = draw(spec, n, torch.float32)
    x["ids"] = x["ids"].masked_fill(x["ids"] == inverse_steps.CHUNKS, -1)
    reads, load = list[str](), Memory.load

    def counted(memory: Memory, node: Node, *places: Sequence[Tensor]) -> Tensor:
        reads.append(access_of(node).tensor.name)
        return load(memory, node, *places)  # type: ignore[arg-type]

    monkeypatch.setattr(Memory, "load", counted)
    low = lower_kernel(spec, Schedule(order="key_outer", rows=64, block=16))
    tensors, params = with_scratch(low, x, n.params)
    tally = low.steps[0].program
    interpret(tally, {t.name: tensors[t.name] for t in tally.tensors}, params)
    steps = inverse.SEGMENT // inverse.STEP
    assert reads.count("ids") == 1 + (1 + more) * steps
    assert int(tensors["attend_tallies"].sum()) > 0


@pytest.mark.parametrize("tq", [63, 64, 200])
def test_many_choices_have_longer_segments(tq: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("STEP", 16), ("SEGMENT", 32), ("MANY", 64 * 6)):
        monkeypatch.setattr(inverse, name, value)
    spec = attention(2, 1, (32, 32), scope="head", slots=3, chunk=16, dtype="float32", where=var("j") <= var("i"))
    n = Sizes(tq=tq, tk=300, offset=300 - tq)
    x = draw(spec, n, torch.float32) | {"out": torch.zeros(1, tq, 2, 32), "lse": torch.zeros(1, tq, 2)}
    low = lower_kernel(spec, Schedule(order="key_outer", rows=64, block=16))
    tensors, params = with_scratch(low, x, n.params)
    for step in low.steps:
        interpret(step.program, {t.name: tensors[t.name] for t in step.program.tensors}, params)
    assert params["ST"] == -(-tq * 6 // (32 if tq < 64 else 64))
    want = truth(spec, x, n.offset, lambda i, j, h: j <= i)["out"]
    assert (tensors["out"].double() - want).norm() <= 1e-5 * want.norm()
