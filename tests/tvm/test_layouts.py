"""What a kernel takes: any strides but the last, nothing at all, halves; and what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import sparsec
from sparsec.backends.tvm.build import CompiledKernel, LaunchError, compile
from sparsec.scalar.fn import Fn
from sparsec.testing.whole.trained import wrong_on
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


def test_indices_in_vectors_where_a_block_is_turned() -> None:
    """The backward of a bias that several heads share: loaded along rows, whose heads' numbers are a tile."""
    variant = sparsec.parse("""variant shared(q: [B,T,H,D], k: [B,T,HKV,D], v: [B,T,HKV,DV], f: [B,T,HKV] float32) {
      m = tokens(k, v) {chunk = 16}
      n = reduce(score(q, summary(m) {size = 16, stride = 16})) {over = group, op = mean}
      t = topk(n) {k = 1, size = 16, scope = kv_head, eligible = 16 * c <= i, forced = c == i // 16}
      return attend(q, m, t, mask(m) {where = j <= i}, f=f) {bias = score + f[b, j, h // (H // HKV)]}
    }""")
    x = sparsec.inputs(variant, B=2, T=40, H=2, HKV=1, D=16, DV=16)
    assert wrong_on(sparsec.compile(variant, target="cpu"), x, "float32") == []
