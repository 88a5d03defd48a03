"""Values that a loop carries: their places, first values, and updates in place or by a copy at the end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sparsec.backends.tvm.demands import Stage
from sparsec.backends.tvm.expressions import vector
from sparsec.backends.tvm.kernel import Kernel
from sparsec.backends.tvm.nests import each_point
from sparsec.backends.tvm.reductions import over_lanes
from sparsec.backends.tvm.storage import Stored, cell
from sparsec.tile.language import Axis, Node, TileOp
from sparsec.tile.regions import body_of

Carried = Sequence[tuple[Node, Node]]
"""(carry, what it becomes) of a loop."""

Readers = Mapping[int, Sequence[tuple[Stage, bool]]]
"""Who reads a stored value, by its serial number, and whether point by point."""


def start(kernel: Kernel, loop: Node) -> None:
    """Give the carries of a loop their places and first values; the loop's results are found in the same places."""
    body = body_of(loop)
    for carry, init, out in zip(body.carries, loop.args[2:], body.yields, strict=True):
        lane = lane_of(kernel, carry, out)
        if _can_take_over(kernel, loop, init, carry):
            kernel.stored[carry.serial] = kernel.stored[init.serial]
        else:
            fill(kernel, kernel.give_place(carry, lane), init, lane)
    for user in kernel.found.users[loop.serial]:
        if user.op is TileOp.RESULT:
            position = user.attrs[0]
            assert isinstance(position, int)
            kernel.stored[user.serial] = kernel.stored[body.carries[position].serial]


def lane_of(kernel: Kernel, carry: Node, out: Node) -> Axis | None:
    """The lane axis of a carry's place: that of the stage which makes its next value."""
    stage, home = kernel.found.stages.get(out.serial), kernel.found.regions.home
    if stage is None or home[out.serial] != home[carry.serial] or (out.op is TileOp.REDUCE and over_lanes(stage)):
        return kernel.found.lanes.pick(carry.axes)
    return stage.lane


def _can_take_over(kernel: Kernel, loop: Node, init: Node, carry: Node) -> bool:
    """Whether a carry may start in the place of an earlier loop's result that nobody else reads."""
    if init.op is not TileOp.RESULT or kernel.found.users[init.serial] != [loop]:
        return False
    once = loop.args.count(init) == 1 and init not in body_of(loop).yields
    return once and not (kernel.stored[init.serial].registers and carry.serial in kernel.found.indexed)


def update_in_place(
    kernel: Kernel, pair: tuple[Node, Node], carried: Carried, place: Mapping[int, int], readers: Readers
) -> bool:
    """Let the new value overwrite the carry, if by then all others have read it; ``place`` is the group of a stage."""
    carry, out = pair
    if out is carry:
        return True
    if out.serial not in place or not out.axes or out.op in (TileOp.REDUCE, TileOp.SCAN):
        return False
    if sum(y is out for _, y in carried) > 1 or any(y is carry for _, y in carried):
        return False
    at = place[out.serial]
    for reader, pointwise in readers.get(carry.serial, ()):
        group = place[reader.node.serial]
        if group > at or (group == at and not (pointwise and reader.node.serial <= out.serial)):
            return False
    kernel.stored[out.serial] = kernel.stored[carry.serial]
    return True


def copy(kernel: Kernel, copied: Carried) -> None:
    """Write new values to their carries; a carry that takes another's old value goes through a place in between."""
    between: dict[int, Stored] = {}
    for carry, out in copied:
        if out.op is TileOp.CARRY and any(out is c for c, _ in copied):
            own = kernel.stored[carry.serial]
            between[carry.serial] = Stored(kernel.fresh("swap"), own.dtype, own.layout, own.width, False)
            for name, size, dtype in between[carry.serial].buffers():
                kernel.allocate(name, size, cell(dtype))
            fill(kernel, between[carry.serial], out, lane_of(kernel, carry, out))
    for carry, out in copied:
        place, lane = kernel.stored[carry.serial], lane_of(kernel, carry, out)
        if carry.serial in between:
            for point in each_point(kernel, carry.axes, lane):
                kernel.out.line(f"{place.at(point)} = {between[carry.serial].at(point)}")
        else:
            fill(kernel, place, out, lane)


def fill(kernel: Kernel, place: Stored, value: Node, lane: Axis | None) -> None:
    """Copy a value to a place."""
    for point in each_point(kernel, value.axes, lane):
        text = vector(kernel, value, point)
        kernel.out.line(f"{place.at(point)} = {text}")
