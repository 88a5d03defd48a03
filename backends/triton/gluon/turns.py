"""What warps with roles need of a program: loops that meet a tile of keys and one of values a turn, and their loads."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise

from sparsec.backends.triton.address import split
from sparsec.backends.triton.descriptors import Descriptor, box_axis, box_of, described, descriptors
from sparsec.backends.triton.gluon.rings import TWO, Rings
from sparsec.scalar.fn import Fn
from sparsec.tile.language import Axis, Node, Program, TileOp, access_of
from sparsec.tile.regions import TOP, Regions, body_of, regions
from sparsec.tile.schedule import ScheduleError

GROUP_ROWS = 64
"""Rows of a warp group's product."""

GROUP_WARPS = GROUP_ROWS // 16

_ROWWISE = (
    TileOp.CONST, TileOp.PARAM, TileOp.PROGRAM_ID, TileOp.IOTA, TileOp.FULL, TileOp.MAP, TileOp.MASK_IF, TileOp.LOAD,
    TileOp.STORE, TileOp.DOT, TileOp.REDUCE, TileOp.CAST, TileOp.LOOP, TileOp.INDEX, TileOp.CARRY, TileOp.RESULT,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Turn:
    """A loop over key tiles.

    Attributes:
        scores: the product that everything else in the body waits for.
        sums: the product that adds to a carried value, which waits for the rest of the body.
        keys, values: the loads of their second operands.
        position: which carried value the sums are.
    """

    loop: Node
    scores: Node
    sums: Node
    keys: Node
    values: Node
    position: int

    @property
    def weights(self) -> Node:
        """What meets the values, rounded to their dtype."""
        return self.sums.args[0]

    @property
    def faded(self) -> Node:
        """The carried sums, times a factor where there is one."""
        return self.sums.args[2]

    @property
    def certain(self) -> int:
        """How many turns the loop is seen to have: its end is a maximum of its start plus a number."""
        lo, hi = self.loop.args[:2]
        after = [a for a in hi.args if hi.op is TileOp.MAP and hi.attrs[0] is Fn.MAXIMUM and a.op is TileOp.MAP]
        found = [b for a in after if a.attrs[0] is Fn.ADD and lo in a.args for b in a.args if b.op is TileOp.CONST]
        return max((int(str(b.attrs[0])) for b in found), default=0)


@dataclass(frozen=True, slots=True)
class Roles:
    """A program as a warp that loads and groups of warps that compute.

    Attributes:
        turns: by the loop's number.
        queries: the load that all scores share.
        boxes: the descriptors of queries, keys and values, by the load's serial number.
        stored: the descriptor of the output by the store's, where it fits where the queries were.
        rows, keys, values, dims: the axes of both products.
        walk: the loop around the turns, which goes from one tile of queries to the next, if there is one.
        late: loads of rows beside the queries, as wide as the values, that a group meets after its turns.
        gathered: whether a walk's groups copy their own rows of queries, those of the next tile while this one's are
            read; a walk whose queries are a box has the loading warp bring them a tile ahead.
        some: so many rows are all that is ever stored, others are nobody's; 0 where all are.
        rings: the slots of keys and values.
    """

    program: Program
    turns: dict[int, Turn]
    queries: Node
    boxes: dict[int, Descriptor]
    stored: dict[int, Descriptor]
    rows: Axis
    keys: Axis
    values: Axis
    dims: Axis
    walk: Node | None = None
    late: tuple[Node, ...] = ()
    gathered: bool = False
    some: int = 0
    rings: Rings = TWO

    @property
    def base(self) -> int:
        """The region of the turns."""
        return TOP if self.walk is None else body_of(self.walk).number

    @property
    def ahead(self) -> bool:
        """Whether the loading warp brings the queries of a walk's next tile while this one's are read."""
        return self.walk is not None and not self.gathered

    @property
    def groups(self) -> int:
        """Groups of warps that compute."""
        return (self.some or self.rows.size) // GROUP_ROWS

    @property
    def descriptors(self) -> tuple[Descriptor, ...]:
        """All that the kernel takes."""
        return (*self.boxes.values(), *self.stored.values())

    @property
    def last(self) -> Turn:
        """The last loop of the program."""
        return max(self.turns.values(), key=lambda turn: turn.loop.serial)

    @property
    def dtype(self) -> str:
        """The dtype of all operands."""
        return self.queries.dtype


def roles(program: Program) -> Roles:
    """The roles of a program. Raises ScheduleError where its warps can have none."""
    found = regions(program)
    walk = _walk(found)
    base = TOP if walk is None else body_of(walk).number
    every_loop = (n for nodes in found.nodes.values() for n in nodes if n.op is TileOp.LOOP and n is not walk)
    loops = [n for n in every_loop if not conditional(n) or found.home[n.serial] != base]
    if not loops:
        raise refused(program, "has no loop")
    turns = {body_of(loop).number: _turn(program, loop, found, base) for loop in loops}
    every = list(turns.values())
    shared = {t.scores.args[0] for t in every}
    if len(shared) != 1:
        raise refused(program, "has more than one tile of queries")
    (queries,) = shared
    first = every[0]
    rows, keys = first.scores.axes
    made = Roles(program, turns, queries, {}, {}, rows, keys, first.sums.axes[1], first.keys.axes[1], walk)
    made = replace(made, gathered=walk is not None and queries.serial not in descriptors(program, True))
    _check(made, found)
    _chained(made, found)
    made = replace(made, late=_late(made, found))
    return replace(made, boxes=_boxes(made), stored=_stored(made, found))


def conditional(loop: Node) -> bool:
    """Whether a loop is a condition, of code without turns that may have no boxes."""
    lo, hi = loop.args[:2]
    return hi.dtype == "bool" and lo.op is TileOp.CONST and lo.attrs[0] == 0


def _walk(found: Regions) -> Node | None:
    """The only loop of the top, if it holds all others: it stores, and carries nothing."""
    loops = [n for n in found.nodes[TOP] if n.op is TileOp.LOOP]
    if len(loops) != 1 or body_of(loops[0]).carries or loops[0].args[1].dtype == "bool":
        return None
    return None if any(n.op is TileOp.STORE for n in found.nodes[TOP]) else loops[0]


def _turn(program: Program, loop: Node, found: Regions, base: int) -> Turn:
    body = body_of(loop)
    dots = [n for n in found.nodes.get(body.number, ()) if n.op is TileOp.DOT]
    if found.home[loop.serial] != base or body.effects:
        raise refused(program, "has a loop in a loop, or one that stores")
    late = [d for d in dots if d in body.yields]
    early = [d for d in dots if d not in late]
    if len(early) != 1 or len(late) != 1 or len(early[0].args) != 2:
        raise refused(program, f"has {len(early)} products and {len(late)} sums of products a turn, not one of each")
    (scores,), (sums,) = early, late
    position = body.yields.index(sums)
    faded = sums.args[2] if len(sums.args) == 3 else sums
    if faded is body.carries[position]:
        return Turn(loop, scores, sums, scores.args[1], sums.args[1], position)
    if faded.op is not TileOp.MAP or faded.attrs[0] is not Fn.MUL or faded.args[0] is not body.carries[position]:
        raise refused(program, "adds to something other than a carried sum times a factor")
    return Turn(loop, scores, sums, scores.args[1], sums.args[1], position)


def _check(made: Roles, found: Regions) -> None:
    """Raise ScheduleError where the warps of a group would need rows of another, or a product is no warp group's."""
    program, rows = made.program, made.rows
    if rows.size % GROUP_ROWS or made.dtype not in ("float16", "bfloat16"):
        raise refused(program, f"has {rows.size} rows of {made.dtype}, no groups of {GROUP_ROWS} in half precision")
    for node in (n for nodes in found.nodes.values() for n in nodes):
        if node.op not in _ROWWISE or (node.op is TileOp.REDUCE and node.attrs[1] == rows):
            raise refused(program, f"has a {node.op.name.lower()}, which groups of rows cannot do apart")
    for turn in made.turns.values():
        shapes = (turn.scores.axes, turn.sums.axes, turn.keys.axes, turn.values.axes)
        wanted = ((rows, made.keys), (rows, made.values), (made.keys, made.dims), (made.keys, made.values))
        if shapes != wanted or turn.sums.args[0].op is not TileOp.CAST:
            raise refused(program, "has loops over tiles of different shapes")


def _chained(made: Roles, found: Regions) -> None:
    """Raise ScheduleError where a loop's sums are read before the last loop ends, since they lack their last turn."""
    turns = sorted(made.turns.values(), key=lambda turn: turn.loop.serial)
    inits = {t.loop.serial: t.loop.args[2 + t.position] for t in turns}
    for turn, after in pairwise(turns):
        sums = inits[after.loop.serial]
        own = sums.op is TileOp.RESULT and sums.args[0] is turn.loop and sums.attrs[0] == turn.position
        readers = [n for n in found.nodes[made.base] if sums in n.args]
        if not own or readers != [after.loop]:
            raise refused(made.program, "has loops that do not add to the same sums, one after the other")


def _late(made: Roles, found: Regions) -> tuple[Node, ...]:
    """What the loading warp can bring of rows beside the queries: they read it from shared memory after their turns."""
    if made.gathered:
        return ()
    wanted, every = (made.rows, made.values), descriptors(made.program, True)
    loads = [n for n in found.nodes[made.base] if n.op is TileOp.LOAD and n.axes == wanted and n is not made.queries]
    halves = [n for n in loads if n.serial in every and n.dtype in ("float16", "bfloat16")]
    return tuple(n for n in halves if n.dtype == halves[0].dtype)


def _boxes(made: Roles) -> dict[int, Descriptor]:
    """The descriptors that the loading warp uses; a box of queries is what one group reads."""
    every = descriptors(made.program, True)
    wanted = {} if made.gathered else {made.queries.serial: made.queries}
    wanted |= {load.serial: load for t in made.turns.values() for load in (t.keys, t.values)}
    wanted |= {load.serial: load for load in made.late}
    boxes = {}
    for serial, load in wanted.items():
        if load.op is not TileOp.LOAD or serial not in every:
            raise refused(made.program, "has an operand that no descriptor loads")
        boxes[serial] = _swizzled(every[serial], load, made)
    return boxes


def _stored(made: Roles, found: Regions) -> dict[int, Descriptor]:
    """The descriptor of the output, whose rows leave through the shared memory of the queries."""
    for node in (n for n in found.nodes[made.base] if n.op is TileOp.STORE and not made.gathered):
        tensor, box = access_of(node).tensor, box_of(node)
        alike = tensor.dtype == made.dtype and made.values.size == made.dims.size
        if alike and box is not None and node.args[-1].axes == (made.rows, made.values):
            return {node.serial: _swizzled(described(tensor, box, 0), node, made)}
    return {}


def _swizzled(box: Descriptor, load: Node, made: Roles) -> Descriptor:
    grouped = load is made.queries or load in made.late or load.op is TileOp.STORE
    return swizzled(box, load, made.rows if grouped else None)


def swizzled(box: Descriptor, access: Node, rows: Axis | None) -> Descriptor:
    """A box as products read it from shared memory; of ``rows`` that groups share only those of one group."""
    size = access_of(access).tensor.shape[-1]
    assert isinstance(size, int)
    halved = -1 if rows is None else row_dim(access, rows)
    block = tuple(GROUP_ROWS if d == halved else b for d, b in zip(box.dims, box.block, strict=True))
    return replace(box, block=block, swizzle=min(128, 2 * size))


def places(access: Node) -> tuple[Node, ...]:
    """The scalars that say where a box begins."""
    index = access.args[: access_of(access).tensor.rank]
    return tuple(t.node for i in index for t in split(i).scalars if t.node is not None)


def row_dim(load: Node, rows: Axis) -> int:
    """The dimension of a loaded tensor that the rows of a program run along."""
    return next(d for d, i in enumerate(load.args[: access_of(load).tensor.rank]) if box_axis(split(i)) == rows)


def refused(program: Program, why: str) -> ScheduleError:
    """The error of a program whose warps are all alike, and why."""
    return ScheduleError(f"{program.name} {why}: it cannot have a warp that loads for the others; use producer=False")
