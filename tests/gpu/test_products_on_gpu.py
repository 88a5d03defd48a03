"""Products of tensor cores on a GPU: tf32 operands are rounded to the nearest, which the hardware would not do."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sparsec.backends.triton.build import arguments, launch, load
from sparsec.backends.triton.emit import emit
from sparsec.tile import build as tile
from sparsec.tile.interpreter import interpret
from sparsec.tile.language import Program, Tensor
from sparsec.tile.scalars import grid_of
from sparsec.tile.schedule import Schedule

pytestmark = pytest.mark.gpu

SIZE = 64


def product() -> Program:
    """out = x y in tf32; the operands are worked out, as no load rounds them."""
    with tile.Builder() as b:
        m, n, d = (b.axis(name, SIZE) for name in "mnd")
        x, y, out = (Tensor(name, "float32", (SIZE, SIZE)) for name in ("x", "y", "out"))
        left, right = tile.load(x, tile.iota(m), tile.iota(d)), tile.load(y, tile.iota(d), tile.iota(n))
        tile.store(out, tile.iota(m), tile.iota(n), value=tile.dot(left, right, d, precision="tf32"))
        return b.program("product", [x, y, out], [], [1])


def made(x: torch.Tensor, y: torch.Tensor, folder: Path) -> torch.Tensor:
    """The product by the GPU."""
    program, tensors = product(), {"x": x.cuda(), "y": y.cuda(), "out": torch.empty(SIZE, SIZE, device="cuda")}
    kernel = load(emit(program, Schedule()), program.name, folder)
    launch(kernel, grid_of(program, {}), arguments(program, Schedule(), tensors, {}), Schedule())
    return tensors["out"].cpu()


def test_operands_are_rounded(tmp_path: Path) -> None:
    """1 + 3/4096 is nearest to 1 + 4/4096; cut off it would be 1."""
    x = torch.eye(SIZE) * (1 + 2**-11 + 2**-12)
    assert torch.equal(made(x, torch.eye(SIZE), tmp_path), torch.eye(SIZE) * (1 + 2**-10))


def test_as_the_tile_interpreter_does(tmp_path: Path) -> None:
    x, y = torch.randn(2, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    tensors = {"x": x, "y": y, "out": torch.empty(SIZE, SIZE)}
    interpret(product(), tensors, {})
    torch.testing.assert_close(made(x, y, tmp_path), tensors["out"], rtol=1e-5, atol=1e-5)


def test_what_is_no_number_stays_none(tmp_path: Path) -> None:
    """The bits of the usual NaN are all set: rounding them up would make zero of them."""
    x = torch.eye(SIZE)
    x[3, 3] = torch.tensor(0x7FFFFFFF, dtype=torch.int32).view(torch.float32)
    x[5, 5] = torch.inf
    found = made(x, torch.ones(SIZE, SIZE), tmp_path)
    assert found[3].isnan().all() and (found[5] == torch.inf).all() and found[4].isfinite().all()
