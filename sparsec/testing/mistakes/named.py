"""The mistakes that kernels are made with on purpose: each a change of nodes, named for what it gets wrong."""

from __future__ import annotations

from sparsec.lower import softmax
from sparsec.plan.grad_specs import AnySpec
from sparsec.plan.specs import Combine, GatheredAttention, Selector, Summarise, TiledAttention
from sparsec.scalar.fn import Fn
from sparsec.testing.mistakes.mutants import Args, Change
from sparsec.tile import build as tile
from sparsec.tile.language import Node, TileOp, access_of


def is_map(node: Node, fn: Fn) -> bool:
    """Whether a node is a map of this function."""
    return node.op is TileOp.MAP and node.attrs[0] is fn


def boundary_column_unmasked(node: Node, args: Args) -> Node | None:
    """``key < length`` lets the key past the last one through."""
    compares = is_map(node, Fn.LT) and bool(node.axes) and node.args[1].op is TileOp.PARAM
    return tile.apply(Fn.LE, *args) if compares else None


def future_column_unmasked(node: Node, args: Args) -> Args | None:
    """Every inequality between positions lets one more pair through."""
    compares = is_map(node, Fn.LE) and bool(node.args[0].axes) and bool(node.args[1].axes)
    return (args[0], tile.apply(Fn.ADD, args[1], 1)) if compares and node.args[1].dtype == "int32" else None


def rescale_skipped(node: Node, args: Args) -> Node | None:
    """What was accumulated under an older maximum is not scaled to the new one."""
    if is_map(node, Fn.EXP2) and is_map(node.args[0], Fn.SUB) and node.args[0].args[0].op is TileOp.CARRY:
        return tile.full(1.0, *node.axes)
    return None


def first_tile_skipped(node: Node, args: Args) -> Args | None:
    """Loops over tiles that carry accumulators start one late."""
    return (tile.apply(Fn.ADD, args[0], 1), *args[1:]) if accumulates(node) else None


def last_tile_skipped(node: Node, args: Args) -> Args | None:
    """Loops over tiles that carry accumulators end one early."""
    return (args[0], tile.apply(Fn.SUB, args[1], 1), *args[2:]) if accumulates(node) else None


def accumulates(node: Node) -> bool:
    """Whether a node is a loop that carries a tile."""
    return node.op is TileOp.LOOP and any(len(a.axes) >= 1 for a in node.args[2:])


def value_of_the_next_key(node: Node, args: Args) -> Node | None:
    """Values are read one key late: an index off by one inside a tile."""
    if node.op is not TileOp.LOAD or access_of(node).tensor.name != "v":
        return None
    access = access_of(node)
    at = 1 if access.tensor.rank == 4 else 0
    last = tile.apply(Fn.SUB, tile.param("TK"), 1)
    index = tile.apply(Fn.MINIMUM, tile.apply(Fn.ADD, args[at], 1), last)
    return tile.Builder.current().node(
        node.op, (*args[:at], index, *args[at + 1 :]), node.attrs, node.dtype, tile.union(*args)
    )


def neighbouring_chunk(node: Node, args: Args) -> Node | None:
    """Chunk 0 is read where chunk 1 was chosen."""
    if node.op is not TileOp.LOAD or (access_of(node).tensor.dtype, access_of(node).tensor.rank) != ("int32", 4):
        return None
    loaded = tile.Builder.current().node(node.op, args, node.attrs, node.dtype, node.axes)
    return tile.apply(Fn.WHERE, tile.apply(Fn.EQ, loaded, 1), 0, loaded)


def scale_forgotten(node: Node, args: Args) -> Node | None:
    """Base-two exponents without the factor that makes them so."""
    is_scale = is_map(node, Fn.MUL) and node.args[1].op is TileOp.CONST and node.args[1].dtype == "float32"
    if not is_scale or len(node.axes) != 2 or not reads_dot(node.args[0]):
        return None
    value = node.args[1].attrs[0]
    assert isinstance(value, float)
    return tile.apply(Fn.MUL, args[0], value / softmax.LOG2E)


def reads_dot(node: Node) -> bool:
    """Whether a node is a product, or a masked one."""
    while node.op is TileOp.MASK_IF or is_map(node, Fn.WHERE):
        node = node.args[2] if node.op is TileOp.MASK_IF else node.args[1]
    return node.op is TileOp.DOT


def accumulator_in_half_precision(node: Node, args: Args) -> Node | None:
    """Accumulators are rounded to bfloat16 in every step."""
    if node.op is not TileOp.DOT or len(args) != 3:
        return None
    made = tile.Builder.current().node(node.op, args, node.attrs, node.dtype, node.axes)
    return tile.cast(tile.cast(made, "bfloat16"), "float32")


def next_id(node: Node, args: Args) -> Args | None:
    """Candidates are ranked under the id of their neighbour."""
    return (args[0], tile.apply(Fn.ADD, args[1], 1)) if is_map(node, Fn.RANK) else None


def forced_forgotten(node: Node, args: Args) -> Node | None:
    """Forced members compete by their score."""
    return args[0] if is_map(node, Fn.XOR) and node.dtype == "int64" else None


def scores_of_other_sign(node: Node, args: Args) -> Args | None:
    """The lowest scores are chosen."""
    return (tile.apply(Fn.MUL, args[0], -1.0), args[1]) if is_map(node, Fn.RANK) else None


def group_short_of_a_head(node: Node, args: Args) -> Args | None:
    """The last head of a group is left out."""
    plain = node.op is TileOp.LOOP and node.args[1].op is TileOp.CONST and node.args[0].op is TileOp.CONST
    return (args[0], tile.apply(Fn.SUB, args[1], 1), *args[2:]) if plain else None


def summed_not_averaged(node: Node, args: Args) -> Node | None:
    """A mean without its division."""
    return args[0] if is_map(node, Fn.DIV) else None


def gates_exchanged(node: Node, args: Args) -> Node | None:
    """Every gate is 1 - itself."""
    return tile.apply(Fn.SUB, 1.0, tile.apply(Fn.SIGMOID, *args)) if is_map(node, Fn.SIGMOID) else None


def base_two_for_natural(node: Node, args: Args) -> Node | None:
    """2 ** x where e ** x is meant."""
    return tile.apply(Fn.EXP2, *args) if is_map(node, Fn.EXP) else None


def stick_never_shorter(node: Node, args: Args) -> Node | None:
    """Stick-breaking weights that forget what the members before them took."""
    return args[0] if node.op is TileOp.SCAN else None


def bit_of_the_next_token(node: Node, args: Args) -> Args | None:
    """Who chose a chunk of a union is read one token late."""
    return (args[0], tile.apply(Fn.ADD, args[1], 1)) if is_map(node, Fn.SHR) and node.dtype == "int32" else None


SOFTMAX: tuple[Change, ...] = (
    boundary_column_unmasked,
    future_column_unmasked,
    rescale_skipped,
    first_tile_skipped,
    last_tile_skipped,
    value_of_the_next_key,
    scale_forgotten,
    summed_not_averaged,
)

MISTAKES: dict[type[AnySpec], tuple[Change, ...]] = {
    TiledAttention: SOFTMAX,
    GatheredAttention: (*SOFTMAX, neighbouring_chunk, bit_of_the_next_token),
    Selector: (
        boundary_column_unmasked,
        future_column_unmasked,
        first_tile_skipped,
        last_tile_skipped,
        next_id,
        forced_forgotten,
        scores_of_other_sign,
        group_short_of_a_head,
        base_two_for_natural,
        stick_never_shorter,
    ),
    Summarise: (summed_not_averaged,),
    Combine: (gates_exchanged, base_two_for_natural, summed_not_averaged),
}
"""What each class of kernel may get wrong; where a kernel has no such node, the change does nothing."""
