"""Blocks transposed in registers: values that memory holds along one axis and their readers want along another."""

from __future__ import annotations

from sparsec.backends.tvm.demands import Stage
from sparsec.backends.tvm.expressions import compute, converted
from sparsec.backends.tvm.kernel import Kernel
from sparsec.backends.tvm.nests import rows_of
from sparsec.backends.tvm.point import Point
from sparsec.backends.tvm.storage import cell
from sparsec.backends.tvm.text import plus, times
from sparsec.backends.tvm.tiles import Tile


def emit_turned(kernel: Kernel, stage: Stage) -> None:
    """Compute vectors along ``stage.turn``, a square block at a time, and store them along ``stage.lane``."""
    node, lane, turn = stage.node, stage.lane, stage.turn
    assert lane is not None and turn is not None
    place, lanes = kernel.give_place(node, lane), kernel.found.lanes
    width = lanes.width(lane)
    outer = Tile(tuple(a for a in node.axes if a not in (lane, turn)), None)
    with (
        rows_of(kernel, outer) as (row,),
        kernel.loop(lanes.chunks(lane), "b") as block,
        kernel.loop(lanes.chunks(turn), "c") as chunk,
    ):
        vectors = []
        for k in range(width):
            point = Point({**row, lane: plus(times(block, width), str(k))}, turn, times(chunk, width), width)
            text = converted(compute(kernel, node, point), node.dtype, cell(node.dtype), width)
            vectors.append(kernel.bind(text, "t"))
        for k, text in enumerate(transposed(kernel, vectors)):
            point = Point({**row, turn: plus(times(chunk, width), str(k))}, lane, times(block, width), width)
            kernel.out.line(f"{place.at(point)} = {text}")


def transposed(kernel: Kernel, vectors: list[str]) -> list[str]:
    """Vector k of the result holds element k of every given vector."""
    width, block = len(vectors), 1
    while block < width:
        low = [width + p - block if p & block else p for p in range(width)]
        high = [width + p if p & block else p + block for p in range(width)]
        made = list(vectors)
        for k in (k for k in range(width) if not k & block):
            pair = f"[{vectors[k]}, {vectors[k + block]}]"
            made[k] = kernel.bind(f"T.Shuffle({pair}, {low})", "t")
            made[k + block] = kernel.bind(f"T.Shuffle({pair}, {high})", "t")
        vectors, block = made, block * 2
    return vectors


def transposed_sum(kernel: Kernel, sums: list[str], width: int) -> str:
    """A vector whose lane j is the sum of vector j: neighbours are interleaved and added until one is left."""
    half = width // 2
    low = [x for k in range(half) for x in (k, width + k)]
    high = [x + half for x in low]
    texts = [kernel.bind(text, "t") for text in sums]
    while len(texts) > 1:
        middle = len(texts) // 2
        pairs = zip(texts[:middle], texts[middle:], strict=True)
        texts = [kernel.bind(f"T.Shuffle([{a}, {b}], {low}) + T.Shuffle([{a}, {b}], {high})", "t") for a, b in pairs]
    return texts[0]
