"""What a kernel takes: any strides but the last, nothing at all, halves; and what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from sparsec.backends.tvm.build import CompiledKernel, LaunchError, compile
from sparsec.scalar.fn import Fn
from sparsec.tile import build as tile
from sparsec.tile.language import Tensor
from sparsec.tile.schedule import Schedule


def doubling(folder: Path, dtype: str = "float32") -> CompiledKernel:
    """out[b, t, :] = 2 x[b, t, :], any length."""
    with tile.Builder() as b:
        m, e = b.axis("m", 16), b.axis("e", 5)
        x, out = (Tensor(name, dtype, ("B", "T", 5)) for name in ("x", "out"))
        length = tile.param("T")
        row = tile.apply(Fn.ADD, tile.apply(Fn.MUL, tile.program_id(0), 16), tile.iota(m))
        value = tile.load(x, tile.program_id(1), row, tile.iota(e), bounds={1: length})
        value = tile.cast(tile.apply(Fn.MUL, tile.cast(value, "float32"), 2.0), dtype)
        tile.store(out, tile.program_id(1), row, tile.iota(e), value=value, bounds={1: length})
        tiles = tile.apply(Fn.TRUNCDIV, tile.apply(Fn.ADD, length, 15), 16)
        program = b.program("doubling", [x, out], [("B", "int32"), ("T", "int32")], [tiles, tile.param("B")])
    return compile(program, Schedule(), folder)


LAYOUTS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "contiguous": lambda x: x.clone(),
    "batch last": lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
    "slice": lambda x: torch.nn.functional.pad(x, (3, 4, 1, 1))[:, 1:-1, 3:-4],
    "every second": lambda x: x.repeat_interleave(2, 1)[:, ::2],
    "one for all": lambda x: x[:1].expand(x.shape),
    "needs grad": lambda x: x.clone().requires_grad_(),
}


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_layouts_are_strides(dtype: str, tmp_path: Path) -> None:
    kernel = doubling(tmp_path, dtype)
    plain = torch.randn(3, 37, 5).to(getattr(torch, dtype))
    for name, layout in LAYOUTS.items():
        x = layout(plain)
        around = torch.full((37, 3, 8), 7.0, dtype=plain.dtype)
        out = around[:, :, 1:6].transpose(0, 1)
        kernel([x, out], {"B": 3, "T": 37})
        assert torch.equal(out, x * 2), name
        assert bool((around[..., 0] == 7).all() and (around[..., 6:] == 7).all()), "wrote beside its output"


def test_nothing_to_do_is_fine(tmp_path: Path) -> None:
    kernel = doubling(tmp_path)
    for batch, length in ((0, 4), (2, 0)):
        empty = torch.empty(batch, length, 5)
        kernel([empty, empty.clone()], {"B": batch, "T": length})


def test_an_empty_tensor_may_be_read_out_of_bounds(tmp_path: Path) -> None:
    """Bounds of zero: the value outside is given, nothing is touched."""
    with tile.Builder() as b:
        n = b.axis("n", 16)
        x, out = Tensor("x", "float32", ("H", "N", 16)), Tensor("out", "float32", (2, 16))
        found = tile.load(x, 1, 5, tile.iota(n), bounds={1: tile.param("N")}, other=3.0)
        gathered = tile.load(x, 1, tile.iota(n), 2, bounds={1: tile.param("N")}, other=4.0)
        tile.store(out, 0, tile.iota(n), value=found)
        tile.store(out, 1, tile.iota(n), value=gathered)
        program = b.program("outside", [x, out], [("N", "int32")], [1])
    result = torch.zeros(2, 16)
    compile(program, Schedule(), tmp_path)([torch.empty(2, 0, 16), result], {"N": 0})
    assert torch.equal(result, torch.tensor([3.0, 4.0])[:, None].expand(2, 16))


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (torch.zeros(2, 3, 5, dtype=torch.float64), "float64"),
        (torch.zeros(3, 5), "needs 3 dimensions"),
        (torch.zeros(2, 5, 3).transpose(1, 2), "last one must be 1"),
        (torch.zeros(2, 3, 5, device="meta"), "on meta"),
    ],
)
def test_misfits_are_refused_by_name(bad: torch.Tensor, words: str, tmp_path: Path) -> None:
    with pytest.raises(LaunchError, match=f"^x: .*{words}"):
        doubling(tmp_path)([bad, torch.zeros(2, 3, 5)], {"B": 2, "T": 3})
