"""Clips that rounding decides: where kernels found each element, and the truth that takes them at their word.

A gradient through a clip is 0 beyond it and whole within. No kernel in half precision knows the side of an element
that lies nearer to its clip than its roundings, and one element of a tile's 4096 on the other side may be an error of
1.6e-2 there. So the sides are asked of the forward kernels. They must be the truth's wherever that is farther from the
clip than a margin, and nearly everywhere else: a kernel that rounds what it clips turns half of what lies in the
margin. Gradients are then held to their bounds under the sides as they were found.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sparsec.ir.build import input as declared
from sparsec.ir.build import map as mapped
from sparsec.ir.build_state import residual
from sparsec.ir.node import Node
from sparsec.ir.op import Op
from sparsec.ir.rewrite import rewrite
from sparsec.ir.variant import Variant
from sparsec.scalar.expr import Expr, var
from sparsec.testing.whole.chain import as_tuple

MARGIN = {"bfloat16": 2.0**-8, "float16": 2.0**-11}
"""Two roundings, of the clip or of the root mean square of the row, whichever is larger."""
TURNED = 1 / 8
"""The share of what lies in the margin that may be on the other side, beyond the first ``FEW``."""
FEW = 2

Call = Callable[[Variant], Tensor | tuple[Tensor, ...]]


@dataclass(frozen=True, slots=True)
class Sides:
    """Where kernels found what is clipped.

    Attributes:
        outputs: the truth of the variant's outputs.
        found: of each clipped residual in the order of the graph, 1 above its clip, −1 below, else 0, fp64.
        open: elements whose truth lies within the margin.
        turned: those of them that the kernels found elsewhere.
        wrong: elements beyond the margin that the kernels found elsewhere.
    """

    outputs: tuple[Tensor, ...]
    found: tuple[Tensor, ...]
    open: int
    turned: int
    wrong: int

    def __bool__(self) -> bool:
        return not self.wrong and self.turned <= FEW + TURNED * self.open

    @property
    def sentence(self) -> str:
        """The counts."""
        count = sum(side.numel() for side in self.found)
        return (
            f"of {count} clipped elements {self.open} lie within a margin of their clip, {self.turned} of these are "
            f"found on its other side, and {self.wrong} of those beyond the margin"
        )


def sides(variant: Variant, run: Call, truth: Call, outputs: Sequence[Tensor], dtype: str) -> Sides:
    """What kernels decide at every clip; ``run`` and ``truth`` compute a variant on the same inputs.

    The kernels run again with the distances from each clip as further outputs; in half precision a distance keeps its
    sign. Raises AssertionError where that changes a bit of the outputs: those would be sides of another computation.
    """
    with torch.no_grad():
        actual, exact = (as_tuple(call(measured(variant))) for call in (run, truth))
    assert all(map(torch.equal, actual, outputs)), "outputs change where distances from a clip are asked for"
    count, found, counts = len(outputs), list[Tensor](), torch.zeros(3, dtype=torch.int64)
    for node, n in zip(clipped(variant), range(count, len(exact), 2), strict=True):
        side, right = (_side(*pair[n : n + 2]) for pair in (actual, exact))
        near, other = _within(exact[n], exact[n + 1], _clip(node), MARGIN[dtype]), side != right
        found.append(side)
        counts += torch.stack([near.sum(), (near & other).sum(), (~near & other).sum()]).cpu()
    return Sides(exact[:count], tuple(found), *counts.tolist())


def _side(above: Tensor, below: Tensor) -> Tensor:
    return (above > 0).double() - (below > 0).double()


def _within(above: Tensor, below: Tensor, clip: float, margin: float) -> Tensor:
    """Whether an element lies near one of its clips, given how far it is above the one and below the other."""
    row = (above + clip).square().mean(-1, keepdim=True).sqrt()
    return torch.minimum(above.abs(), below.abs()) <= margin * row.clamp(min=clip)


def clipped(variant: Variant) -> list[Node]:
    """The residuals that clip."""
    return [node for node in variant.nodes if _clips(node)]


def measured(variant: Variant) -> Variant:
    """The variant with how far each residual is above its clip, and below, as further outputs."""
    found = [
        mapped(_unclipped(node), fn=sign * _x(0) - _clip(node)) for node in clipped(variant) for sign in (1.0, -1.0)
    ]
    return variant.with_outputs([*variant.outputs, *found])


def told(variant: Variant, found: Sequence[Tensor]) -> tuple[Variant, Mapping[str, Tensor]]:
    """The variant whose clips are decided by further inputs, and these."""
    given: dict[Node, Tensor] = {}

    def rule(node: Node) -> Node | None:
        if not _clips(node):
            return None
        side = declared(f"side_{len(given)}", node.shape, "float32")
        given[side] = found[len(given)]
        beyond, gamma = _x(1), node.operands.get("gamma")
        left = (1 - beyond * beyond) * _x(0) + _clip(node) * beyond
        if gamma is None:
            return mapped(_unclipped(node), side, fn=left)
        return mapped(_unclipped(node), side, gamma, fn=_x(2) * left, align="heads")

    outputs = rewrite(variant.outputs, (rule,))
    decided = variant.with_outputs(outputs, (*variant.parameters, *given))
    return decided, {str(side["name"]): x for side, x in given.items()}


def _clips(node: Node) -> bool:
    return node.op is Op.RESIDUAL and isinstance(node["clip"], float | int)


def _clip(node: Node) -> float:
    clip = node["clip"]
    assert isinstance(clip, float | int)
    return float(clip)


def _unclipped(node: Node) -> Node:
    return residual(*node.positional, mode=node.word("mode"), renormalise=node.flag("renormalise"))


def _x(number: int) -> Expr:
    return var(f"x{number}", "float")
