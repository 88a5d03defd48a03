"""Loads and stores as Triton source: 64-bit bases from scalars, 32-bit offsets from tiles, masks from bounds."""

from __future__ import annotations

from sparsec.backends.triton.address import Index, Term, narrow, split
from sparsec.backends.triton.functions import literal
from sparsec.backends.triton.names import argument
from sparsec.backends.triton.text import Speaker, Text, sizes
from sparsec.tile.build import union
from sparsec.tile.language import Access, Axis, Node, access_of


def load(speaker: Speaker, node: Node) -> str:
    """A load through a pointer or a descriptor."""
    if node.serial in speaker.boxes:
        return _box(speaker, node)
    access = access_of(node)
    condition = mask(speaker, node, node.axes)
    if condition and access.other is not None:
        condition += f", other={literal(access.other, node.dtype)}"
    return f"tl.load({address(speaker, node, node.axes)}{condition}{_eviction(access)})"


def store(speaker: Speaker, node: Node) -> str:
    """A store or an atomic addition."""
    access, value = access_of(node), node.args[-1]
    axes = union(*node.args[: access.tensor.rank])
    place, what = address(speaker, node, axes), speaker.at(value, axes).text
    condition = mask(speaker, node, axes)
    if access.atomic:
        return f'tl.atomic_add({place}, {what}{condition}, sem="relaxed")'
    return f"tl.store({place}, {what}{condition}{_eviction(access)})"


def _eviction(access: Access) -> str:
    return f', eviction_policy="evict_{access.evict}"' if access.evict else ""


def narrow_stride(tensor: str, dim: int) -> str:
    """The 32-bit copy of a stride that moves tiles."""
    return f"{tensor}_t{dim}"


def address(speaker: Speaker, node: Node, axes: tuple[Axis, ...]) -> str:
    """Pointers to the elements of an access, as a tile over ``axes``."""
    tensor = access_of(node).tensor
    scalars, tiles = [argument(tensor.name)], []
    for dim, arg in enumerate(node.args[: tensor.rank]):
        index, last = split(arg), dim == tensor.rank - 1
        if index.scalars:
            scalars.append(_times(summed(speaker, index.scalars, ()), "" if last else f"{tensor.name}_s{dim}"))
        if index.tiles:
            tiles.append(_tile(speaker, index, axes, tensor.name, None if last else dim))
    base = " + ".join(scalars)
    return f"{base} + ({' + '.join(tiles)})" if len(tiles) > 1 else " + ".join([base, *tiles])


def _tile(speaker: Speaker, index: Index, axes: tuple[Axis, ...], tensor: str, dim: int | None) -> str:
    offset = summed(speaker, index.tiles, axes)
    if dim is None:
        return offset.closed
    if narrow(index):
        return _times(offset, narrow_stride(tensor, dim))
    return _times(Text(f"{offset.closed}.to(tl.int64)"), f"{tensor}_s{dim}")


def _times(text: Text, stride: str) -> str:
    if text.text == "1" and stride:
        return stride
    return f"{text.closed} * {stride}" if stride else text.closed


def summed(speaker: Speaker, terms: tuple[Term, ...], axes: tuple[Axis, ...]) -> Text:
    """The sum of terms, signs in place."""
    if len(terms) == 1 and terms[0].factor == 1 and terms[0].node is not None:
        return speaker.at(terms[0].node, axes)
    signs = ["-" if t.factor < 0 else "+" for t in terms]
    values = [_magnitude(speaker, t, axes) for t in terms]
    rest = "".join(f" {s} {v}" for s, v in zip(signs[1:], values[1:], strict=True))
    return Text(("-" if signs[0] == "-" else "") + values[0] + rest, infix=len(terms) > 1 or terms[0].node is not None)


def _magnitude(speaker: Speaker, term: Term, axes: tuple[Axis, ...]) -> str:
    if term.node is None:
        return str(abs(term.factor))
    text = speaker.at(term.node, axes).closed
    return text if abs(term.factor) == 1 else f"{text} * {abs(term.factor)}"


def mask(speaker: Speaker, node: Node, axes: tuple[Axis, ...]) -> str:
    """The ``mask`` argument of a bounded access; nothing for an unbounded one."""
    access = access_of(node)
    bounds = node.args[access.tensor.rank :]
    conditions = [
        f"{speaker.at(node.args[dim], axes).closed} < {speaker.text(bound).closed}"
        for dim, bound in zip(access.bounded, bounds, strict=False)
    ]
    if len(conditions) > 1:
        conditions = [f"({c})" for c in conditions]
    return f", mask={' & '.join(conditions)}" if conditions else ""


def _box(speaker: Speaker, node: Node) -> str:
    """A load through a descriptor: its box, without the dimensions of one element, in the order of the axes."""
    descriptor = speaker.boxes[node.serial]
    indices = [split(node.args[dim]) for dim in descriptor.dims]
    starts = [summed(speaker, i.scalars, ()).text if i.scalars else "0" for i in indices]
    axes = tuple(t.node.axes[0] for i in indices for t in i.tiles if t.node is not None)
    tile = f"tl.reshape({descriptor.name}.load([{', '.join(starts)}]), {sizes(axes)})"
    return tile if axes == node.axes else f"tl.permute({tile}, {[axes.index(a) for a in node.axes]})"
