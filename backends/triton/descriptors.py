"""Loads through TMA descriptors: which boxes qualify, what the launch has to make, and when it must not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sparsec.backends.triton.address import Index, split
from sparsec.tile.language import Axis, Node, Program, Tensor, TileOp, access_of
from sparsec.tile.regions import regions

if TYPE_CHECKING:
    import torch

BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "int32": 4, "int64": 8}
_LARGEST_BOX = 256
_LINE = 128
"""Bytes of what a box moves at once."""


@dataclass(frozen=True, slots=True)
class Descriptor:
    """A descriptor argument of a kernel.

    Attributes:
        dims: the tensor's dimensions in the descriptor's order: those of one element first.
        block: the box, in that order.
        swizzle: bytes that a box's rows are swizzled by where the kernel says so itself (Gluon); 0 leaves it to Triton.
    """

    name: str
    tensor: Tensor
    dims: tuple[int, ...]
    block: tuple[int, ...]
    swizzle: int = 0


def descriptors(program: Program, use: bool, whole_rows: bool = False) -> dict[int, Descriptor]:
    """The descriptor of each load that can go through one, by the load's serial number; none unless ``use``."""
    found: dict[int, Descriptor] = {}
    made: dict[tuple[Tensor, tuple[int, ...]], Descriptor] = {}
    for node in (n for nodes in regions(program).nodes.values() for n in nodes if use):
        shape = box_of(node) if node.op is TileOp.LOAD else None
        tensor = access_of(node).tensor if shape is not None else None
        if shape is None or tensor is None or (whole_rows and shape[-1] != tensor.shape[-1]):
            continue
        if (tensor, shape) not in made:
            made[tensor, shape] = described(tensor, shape, sum(d.tensor == tensor for d in made.values()))
        found[node.serial] = made[tensor, shape]
    return found


def described(tensor: Tensor, box: tuple[int, ...], number: int) -> Descriptor:
    """The descriptor of a box of a tensor, the ``number``-th of that tensor."""
    dims = tuple(sorted(range(tensor.rank), key=lambda d: (box[d] > 1, d)))
    name = f"{tensor.name}_desc" + (f"_{number}" if number else "")
    return Descriptor(name, tensor, dims, tuple(box[d] for d in dims))


def box_of(node: Node) -> tuple[int, ...] | None:
    """The extent of an access in every dimension of its tensor, or None where it is no box that TMA can move."""
    access = access_of(node)
    tensor = access.tensor
    if access.other not in (None, 0.0) or tensor.dtype not in BYTES or not 2 <= tensor.rank <= 5:
        return None
    axes = [box_axis(split(i)) for i in node.args[: tensor.rank]]
    named = [a for a in axes if isinstance(a, Axis)]
    if "no box" in axes or axes[-1] is None or len(named) != len(set(named)):
        return None
    for dim, bound in zip(access.bounded, node.args[tensor.rank :], strict=False):
        if bound.op not in (TileOp.PARAM, TileOp.CONST) or bound.attrs[0] != tensor.shape[dim]:
            return None
    box = tuple(a.size if isinstance(a, Axis) else 1 for a in axes)
    legal = _fits_rows(box[-1], tensor) and max(box) <= _LARGEST_BOX and max(box[:-1]) > 1
    return box if legal else None


def _fits_rows(columns: int, tensor: Tensor) -> bool:
    """Whether a box takes whole rows of 16 bytes or more, or whole lines of rows of a power of two.

    Parts of other rows (80 = 64 + 16) gave NaN and stray reads on an H100 with Triton 3.6; 192 = 128 + 64 is unknown.
    """
    size, row = BYTES[tensor.dtype], tensor.shape[-1]
    if columns == row:
        return columns * size >= 16
    whole = isinstance(row, int) and row & (row - 1) == 0 and row % columns == 0
    return whole and columns * size % _LINE == 0


def box_axis(index: Index) -> Axis | str | None:
    """The axis of ``scalar + iota``; None for a scalar; "no box" for anything else."""
    if not index.tiles:
        return None
    (term, *more) = index.tiles
    if more or term.factor != 1 or term.node is None or term.node.op is not TileOp.IOTA:
        return "no box"
    return term.node.axes[0]


def descriptor_refusal(descriptor: Descriptor, tensor: torch.Tensor, lengths: dict[str, int]) -> str | None:
    """Why a tensor cannot be loaded through a descriptor, in one sentence; None where it can.

    ``lengths`` are the launch parameters: a dimension whose bound is a parameter must be exactly that long, since the
    descriptor fills with zeros only outside the tensor.
    """
    name, size = descriptor.tensor.name, tensor.element_size()
    if tensor.stride(-1) != 1:
        return f"{name}: its last stride is {tensor.stride(-1)}; TMA needs 1"
    if tensor.data_ptr() % 16:
        return f"{name}: its address {tensor.data_ptr():#x} is not a multiple of 16"
    for dim, extent in zip(descriptor.dims, descriptor.block, strict=True):
        declared, actual = descriptor.tensor.shape[dim], tensor.shape[dim]
        if dim != tensor.dim() - 1 and tensor.stride(dim) * size % 16:
            return f"{name}: stride {tensor.stride(dim)} of dimension {dim} is not a multiple of 16 bytes"
        if tensor.stride(dim) == 0 and actual > 1:
            return f"{name}: dimension {dim} is one element {actual} times; TMA is not known to read it again and again"
        if actual < extent:
            return f"{name}: dimension {dim} has {actual} elements, fewer than the box's {extent}"
        if lengths.get(str(declared), actual) != actual:
            return f"{name}: dimension {dim} has {actual} elements, but {declared} is {lengths[str(declared)]}"
    return None
