"""What warps with roles need of a program of gradients: tiles that rows keep, and loops that add to sums of rows."""

from __future__ import annotations

from dataclasses import dataclass, replace

from sparsec.backends.triton.descriptors import Descriptor, descriptors
from sparsec.backends.triton.gluon.rings import TWO, Rings
from sparsec.backends.triton.gluon.turns import GROUP_ROWS, refused, swizzled
from sparsec.tile.language import Axis, Node, Program, TileOp
from sparsec.tile.regions import TOP, Regions, body_of, regions


@dataclass(frozen=True, slots=True)
class Sums:
    """A program as a warp that loads and groups of warps that keep 64 rows of every sum each.

    Attributes:
        loops: by number of the body, the loads of a turn.
        held: the loads of tiles that the groups' rows keep.
        boxes: the descriptors of all these, by the load's serial number.
        numbers: by number of the body, the loads of a number per column of a turn, all in fp32.
        rows, columns, dims: the axes of scores, and how wide the sums are.
        rings: the slots of a turn's tiles.
    """

    program: Program
    loops: dict[int, tuple[Node, ...]]
    numbers: dict[int, tuple[Node, ...]]
    held: tuple[Node, ...]
    boxes: dict[int, Descriptor]
    rows: Axis
    columns: Axis
    dims: Axis
    rings: Rings = TWO

    @property
    def groups(self) -> int:
        """Groups of warps that compute."""
        return self.rows.size // GROUP_ROWS

    @property
    def descriptors(self) -> tuple[Descriptor, ...]:
        """All that the kernel takes."""
        return tuple(self.boxes.values())

    @property
    def dtype(self) -> str:
        """The dtype of all operands."""
        return self.held[0].dtype


def dots(found: Regions, number: int) -> list[Node]:
    """The products of a region."""
    return [n for n in found.nodes.get(number, ()) if n.op is TileOp.DOT]


def has_sums(program: Program) -> bool:
    """Whether some loop begins two products a turn, as those of gradients do."""
    found = regions(program)
    return any(len([d for d in dots(found, n) if len(d.args) == 2]) > 1 for n in found.nodes)


def sums(program: Program) -> Sums:
    """The roles of such a program. Raises ScheduleError where its warps can have none."""
    found = regions(program)
    loops = [n for n in found.nodes[TOP] if n.op is TileOp.LOOP]
    if not loops or any(not dots(found, body_of(loop).number) for loop in loops):
        raise refused(program, "has a loop without products")
    if len([n for nodes in found.nodes.values() for n in nodes if n.op is TileOp.LOOP]) != len(loops):
        raise refused(program, "has a loop in a loop")
    held, turns = dict[int, Node](), dict[int, tuple[Node, ...]]()
    scores = dots(found, body_of(loops[0]).number)[0]
    for loop in loops:
        body, own = body_of(loop), dict[int, Node]()
        for dot in dots(found, body.number):
            _check(program, dot, body.carries, body.yields, scores.axes)
            own[dot.args[1].serial] = dot.args[1]
            if len(dot.args) == 2:
                held[dot.args[0].serial] = dot.args[0]
        if body.effects or {y.serial for y in body.yields} != {
            d.serial for d in dots(found, body.number) if len(d.args) == 3
        }:
            raise refused(program, "carries something other than sums of products")
        turns[body.number] = tuple(own.values())
    rows, columns = scores.axes
    numbers = {k: tuple(n for n in found.nodes[k] if _is_number(n, columns)) for k in turns}
    made = Sums(program, turns, numbers, tuple(held.values()), {}, rows, columns, scores.args[0].axes[1])
    return replace(made, boxes=_boxes(made, found))


def _is_number(node: Node, columns: Axis) -> bool:
    return node.op is TileOp.LOAD and node.axes == (columns,) and node.dtype == "float32"


def _check(
    program: Program, dot: Node, carries: tuple[Node, ...], yields: tuple[Node, ...], pairs: tuple[Axis, ...]
) -> None:
    """Raise ScheduleError for a product that is neither of a kept tile nor of rounded scores added to a sum."""
    if len(dot.args) == 2:
        known = dot.axes == pairs and dot.args[0].op is TileOp.LOAD
    else:
        known = dot.args[0].op is TileOp.CAST and dot.args[0].axes == pairs and dot in yields
        known = known and dot.args[2] is carries[yields.index(dot)]
    if not known or dot.args[1].op is not TileOp.LOAD:
        raise refused(program, "has a product of other tiles than those kept, loaded and summed")


def _boxes(made: Sums, found: Regions) -> dict[int, Descriptor]:
    every, boxes = descriptors(made.program, True), dict[int, Descriptor]()
    turns = [load for loads in made.loops.values() for load in loads]
    if made.rows.size % GROUP_ROWS or made.dtype not in ("float16", "bfloat16") or made.dims.size not in (64, 128):
        raise refused(made.program, f"has {made.rows.size} rows of {made.dims.size} numbers in {made.dtype}")
    for load in (*made.held, *turns):
        held, box = load in made.held, every.get(load.serial)
        inside = found.home[load.serial] == TOP if held else found.home[load.serial] in made.loops
        wide = load.axes[0] == (made.rows if held else made.columns) and load.axes[1].size == made.dims.size
        if box is None or not inside or not wide or load.dtype != made.dtype:
            raise refused(made.program, "has an operand that no descriptor loads")
        boxes[load.serial] = swizzled(box, load, made.rows if held else None)
    return boxes
