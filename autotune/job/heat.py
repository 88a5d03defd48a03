"""Pictures of what a variant reads: masks as shares of visible pairs, selections as shares of queries that chose."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from sparsec.autotune.job.outcome import Picture
from sparsec.autotune.job.svg import picture, rect, text, turned
from sparsec.ir.node import Node
from sparsec.ir.op import Op
from sparsec.ir.variant import Variant
from sparsec.oracle.truth import Shown
from sparsec.oracle.values import Chosen

CELLS = 64
"""Most cells along one side of a panel."""
LEVELS = 8
MARGIN, PER_ROW = 22.0, 5


def pictures(variant: Variant, values: Mapping[str, Shown], dims: Mapping[str, int]) -> list[Picture]:
    """One picture per mask and per selection of a variant, from the oracle's values of its nodes."""
    found = []
    for node in variant.nodes:
        shown = values.get(variant.names[node])
        if node.op is Op.MASK and isinstance(shown, Tensor) and shown.numel():
            found.append(_mask(variant.names[node], shown))
        elif node.op in (Op.TOPK, Op.GIVEN) and isinstance(shown, Chosen) and shown.ids.numel():
            found.append(_selection(variant.names[node], node, shown, dims))
    return found


def _mask(name: str, visible: Tensor) -> Picture:
    """bool ``[B,R,H,N]``; heads that see the same share a panel."""
    panels = [coarse(visible[0, :, h].float()) for h in range(visible.shape[2])]
    if all(torch.equal(panel, panels[0]) for panel in panels):
        return Picture(
            f"What the mask {name} lets each query see, the same for all heads: the stronger a tile, the more of its "
            "pairs are visible.",
            heat([("", panels[0])], 300, "key position", "visible pairs"),
        )
    titled = [(f"head {h}", panel) for h, panel in enumerate(panels)]
    return Picture(
        f"What the mask {name} lets each query see, head by head.", heat(titled, 170, "key", "visible pairs")
    )


def _selection(name: str, node: Node, chosen: Chosen, dims: Mapping[str, int]) -> Picture:
    """ids ``[B,R,HS,K]`` as the share of neighbouring queries that chose a unit."""
    unit = "chunk" if chosen.size > 1 else "token"
    units = int(chosen.ids.max()) + 1 if chosen.score is None else chosen.score.shape[-1]
    scopes = chosen.ids.shape[2]
    owner = "key/value head" if scopes == dims.get("HKV") else "head"
    titled = [(f"{owner} {h}", chosen_share(chosen.ids[0, :, h], units)) for h in range(scopes)]
    caption = (
        f"Which {unit}s each query chose ({name}, {chosen.ids.shape[-1]} of {units}), one panel per {owner}: the "
        f"stronger, the more of the neighbouring queries chose the {unit}."
    )
    return Picture(caption, heat(titled, 250 if scopes <= 3 else 170, unit, "of these queries"))


def coarse(x: Tensor) -> Tensor:
    """A matrix averaged over equal tiles, at most CELLS to a side."""
    rows, columns = (-(-n // CELLS) for n in x.shape)
    return _summed(x, rows, columns) / _summed(torch.ones_like(x), rows, columns)


def _summed(x: Tensor, rows: int, columns: int) -> Tensor:
    """Sums over tiles; the last ones may be smaller."""
    padded = torch.nn.functional.pad(x, (0, -x.shape[1] % columns, 0, -x.shape[0] % rows))
    tiles: Tensor = torch.unflatten(torch.unflatten(padded, 1, (-1, columns)), 0, (-1, rows))
    return tiles.sum((1, 3))


def chosen_share(ids: Tensor, units: int) -> Tensor:
    """Lists ``[R,K]`` with −1 pads as a coarse matrix ``[rows, units]`` of the share of queries that list a unit."""
    marked = torch.zeros(ids.shape[0], units + 1)
    marked.scatter_(1, torch.where(ids < 0, units, ids).cpu(), 1.0)
    return coarse(marked[:, :units])


def heat(panels: Sequence[tuple[str, Tensor]], side: float, across: str, what: str) -> str:
    """Panels side by side: queries run downwards, keys to the right."""
    step = side + MARGIN
    parts: list[str] = []
    for n, (title, matrix) in enumerate(panels):
        x, y = MARGIN + (n % PER_ROW) * step, MARGIN + (n // PER_ROW) * (step + 14)
        parts.append(rect(x, y, side, side, "paper"))
        parts += _cells(matrix, x, y, side, what)
        parts.append(text(x, y - 6, title))
        parts.append(text(x + side, y + side + 13, f"{across} →", anchor="end"))
    parts.append(turned(12, MARGIN + side / 2, "← query position"))
    rows = -(-len(panels) // PER_ROW)
    return picture(MARGIN + min(len(panels), PER_ROW) * step, MARGIN + rows * (step + 14), parts, f"{across} by query")


def _cells(matrix: Tensor, x: float, y: float, side: float, what: str) -> Iterable[str]:
    """Cells of one row that are equally dark are one box."""
    height, width = side / matrix.shape[0], side / matrix.shape[1]
    levels = (matrix * LEVELS).ceil().clamp(0, LEVELS).int().tolist()
    for r, row in enumerate(levels):
        start = 0
        for c in range(1, len(row) + 1):
            if c < len(row) and row[c] == row[start]:
                continue
            if row[start]:
                share = float(matrix[r, start:c].mean())
                box = (x + start * width, y + r * height, (c - start) * width, height)
                yield rect(*box, "ink", f"{share:.0%} {what}", row[start] / LEVELS)
            start = c
