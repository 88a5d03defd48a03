"""A schedule: how a kernel runs, never what it computes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Schedule:
    """One point of the tuner's space; a lowering reads what concerns it and refuses what is illegal.

    Attributes:
        order: the loop order: "query_outer", "tile_union", "key_outer" (gathered), "one_pass", "two_pass" or
            "rounds" (selector), "children" (selector within lists of larger units); "apart": in programs of their own
            gradients of keys and of values (backward), log-sum-exps (selector); "excess" (divergence).
        rows: query rows of a tile (tokens x heads of the group that share keys); a power of two, or, of walks whose
            warps have roles, a multiple of 64, of whose axis the rest is never stored.
        block: keys of a tile.
        value_block: columns of the output per program; 0 means all.
        phases: "branch" masks under a scalar condition in one loop; "split" gives masked and interior tiles loops of
            their own.
        descriptors: load boxes through TMA descriptors (Triton on Hopper and later).
        whole_rows: boxes take whole rows only, not lines of longer ones: a program that has no register left for what
            their layouts cost.
        warps, stages: Triton's num_warps and software-pipelining depth.
        registers: the most registers per thread that Triton may use (maxnreg); 0 leaves it free.
        lanes: TVM: axis names by priority for the vector lanes.
        vector: TVM: floats per vector register.
        accumulators: TVM: vector accumulators of a register tile.
        unroll: TVM: unrolling of the summed axis of a dot.
        split_dims: cut head dims into powers of two (Triton needs it; TVM takes any size).
        precision: input precision of fp32 dots: "ieee", "tf32" or "tf32x3".
        splits: programs that share what all queries see (backward): each sums a part, another adds the parts up.
        producer: a warp of its own loads boxes while groups of four warps compute 64 rows each (Gluon on Hopper; needs
            ``descriptors``).
        merge: who puts a row's partial outputs together where a warp loads for the chunks' kernel: "alike" warps, or
            warps with "roles" as well, to which they come as boxes, or such warps that "walk" over the tiles of all
            heads (gathered attention, key-outer).
        peel: the first turn of a program whose warps have roles has code of its own, without a product of zeros.
        late: groups that walk from tile to tile ask for their next rows beneath a product, not before a tile's first:
            its second turn's where that is known to be there and whose rows they are is loaded by then, else its last.
        maximum: keep a running maximum of the scores; without one weights are measured against zero, and rows whose sum
            leaves the safe range are read again with one (gathered attention).
        keep: a backward reads what its forward has sorted, solved, carried from segment to segment and made of levels'
            blocks, which is kept for it, instead of making it again (scans, where those of a whole backward do).
        documents: chosen for packed calls, which tell documents by a dimension that batch entries have of their own in
            every grid (scans; never tuned).
        exact: what half precision rounds between the products of a chunk is multiplied as a sum of two (scans).
    """

    order: str = "query_outer"
    rows: int = 64
    block: int = 64
    value_block: int = 0
    phases: str = "branch"
    descriptors: bool = False
    whole_rows: bool = False
    warps: int = 4
    stages: int = 3
    registers: int = 0
    lanes: tuple[str, ...] = ("m", "e", "n")
    vector: int = 16
    accumulators: int = 16
    unroll: int = 1
    split_dims: bool = True
    precision: str = "ieee"
    splits: int = 1
    maximum: bool = True
    producer: bool = False
    merge: str = "alike"
    peel: bool = False
    late: bool = False
    keep: bool = False
    documents: bool = False
    exact: bool = False

    @property
    def has_roles(self) -> bool:
        """Whether a warp loads for the others: through descriptors alone."""
        return self.producer and self.descriptors


class ScheduleError(ValueError):
    """A schedule that a lowering cannot carry out, in one sentence with the numbers."""
