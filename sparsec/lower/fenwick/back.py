"""The backward of a ladder under a schedule: its tensors and its scratch."""

from __future__ import annotations

from dataclasses import dataclass

from sparsec.lower.fenwick.climb import COLUMNS
from sparsec.lower.fenwick.rungs import BLOCKS, Rungs
from sparsec.lower.scan.chunk.parts import CHUNKS, PADDED, Chunked, power
from sparsec.plan.states.fenwick_specs import LadderGrad
from sparsec.tile import build as tile
from sparsec.tile.language import Tensor


@dataclass(frozen=True, slots=True)
class Back:
    """A ladder's backward; ``rungs`` are those of its forward, whose blocks are made again."""

    spec: LadderGrad
    rungs: Rungs

    @property
    def own(self) -> Chunked:
        """The writes in chunks."""
        return self.rungs.own

    @property
    def scale(self) -> float:
        """Of what is read."""
        return self.spec.forward.read.scale

    @property
    def grad_out(self) -> Tensor:
        """``[B,N,H,DV]``."""
        return self.own.tensor(self.spec.grad, self.own.writes.heads, self.own.writes.cols)

    @property
    def grad_gate(self) -> Tensor | None:
        """``[B,N,H,levels]``."""
        found = self.spec.grad_gate
        return None if found is None else self.own.tensor(found, self.own.writes.heads, self.spec.forward.levels)

    @property
    def matrices(self) -> bool:
        """Whether transitions are matrices."""
        return self.own.delta

    @property
    def learns_decay(self) -> bool:
        """Whether transitions are numbers whose gradient is asked for."""
        return not self.own.delta and self.own.decays and self.spec.grad_decay is not None

    @property
    def tiles(self) -> int:
        """Tiles of value columns of programs that go down the blocks."""
        return -(-self.own.writes.cols // min(COLUMNS, power(self.own.writes.cols)))

    def _per_head(self, name: str, dtype: str, *dims: str | int) -> Tensor:
        return Tensor(f"{self.own.name}_{name}", dtype, ("B", self.own.writes.heads, *dims))

    @property
    def reads(self) -> Tensor:
        """What chunks that read a block ask of its state, by its end, in the keys' dtype ``[B,HKV,chunks,D,DV]``."""
        return self._per_head("reads", self.own.writes.k.dtype, CHUNKS, self.own.writes.rows, self.own.writes.cols)

    @property
    def passes(self) -> Tensor:
        """What they ask of its transition, in the keys' dtype ``[B,HKV,chunks,D,D]``."""
        return self._per_head("passes", self.own.writes.k.dtype, CHUNKS, self.own.writes.rows, self.own.writes.rows)

    @property
    def walks(self) -> Tensor:
        """X of each level that a chunk reads ``[B,HKV,levels,tokens,D]``."""
        return self._per_head("walks", self.own.writes.k.dtype, self.rungs.outer, PADDED, self.own.writes.rows)

    @property
    def pulls(self) -> Tensor:
        """The gradient of X of the level after each that a chunk reads."""
        return self._per_head("pulls", self.own.writes.k.dtype, self.rungs.outer, PADDED, self.own.writes.rows)

    @property
    def pull(self) -> Tensor:
        """The gradient of X_0 ``[B,HKV,tokens,D]``; where transitions are numbers, that of Q through other chunks."""
        return self._per_head("pull", self.own.writes.k.dtype, PADDED, self.own.writes.rows)

    def grad_states(self, level: int) -> Tensor:
        """The gradients of the blocks' states: fp32; of delta rules, where only products read, the keys' dtype."""
        count = CHUNKS if level == 0 else f"{BLOCKS}{level}"
        dtype = self.own.writes.k.dtype if self.matrices else "float32"
        return self._per_head(f"grad_states{level}", dtype, count, self.own.writes.rows, self.own.writes.cols)

    def grad_moves(self, level: int) -> Tensor:
        """The gradients of the blocks' transitions, in the keys' dtype."""
        count = CHUNKS if level == 0 else f"{BLOCKS}{level}"
        w = self.own.writes
        return self._per_head(f"grad_moves{level}", w.k.dtype, count, w.rows, w.rows)

    @property
    def kept(self) -> Tensor:
        """What a right block keeps of its neighbour, by its start: shares of the gradient of its decay."""
        return self._per_head("kept", "float32", self.tiles, CHUNKS)

    @property
    def gains(self) -> Tensor:
        """What a chunk reads at each level, times its gradient ``[B,HKV,levels,chunks]``."""
        return self._per_head("gains", "float32", self.rungs.outer, CHUNKS)

    @property
    def gained(self) -> Tensor:
        """What each token reads at all levels of chunks, times its gradient ``[B,HKV,tokens]``."""
        return self._per_head("gained", "float32", PADDED)

    @property
    def among(self) -> Tensor:
        """The gradient of decays without what passes a whole chunk ``[B,HKV,tokens]``."""
        return self._per_head("among", "float32", PADDED)

    def _of_chunk(self, name: str, size: int) -> Tensor:
        return self._per_head(f"of_{name}", self.own.writes.k.dtype, PADDED, size)

    @property
    def of_effective(self) -> Tensor:
        """The gradient of what queries see of their chunk's values ``[B,HKV,tokens,chunk]``."""
        return self._of_chunk("effective", self.own.chunk)

    @property
    def of_solved(self) -> Tensor:
        """That of (I + A)⁻¹."""
        return self._of_chunk("solved", self.own.chunk)

    @property
    def of_lifted(self) -> Tensor:
        """That of the keys as their decays since the start of the chunk leave them ``[B,HKV,tokens,D]``."""
        return self._of_chunk("lifted", self.own.writes.rows)

    @property
    def of_ending(self) -> Tensor:
        """That of the keys as they are left at its end, with their rates."""
        return self._of_chunk("ending", self.own.writes.rows)

    @property
    def sums(self) -> list[Tensor]:
        """Shares of the first two, in fp32, and of the last, from sums over value columns."""
        squares = [self._per_head(f"sums{n}", "float32", PADDED, self.own.chunk) for n in range(2)]
        return [*squares, self._of_chunk("sums2", self.own.writes.rows)]

    @property
    def of_whole(self) -> Tensor:
        """That of the decay over each chunk, where transitions are matrices; fp32 ``[B,HKV,chunks]``."""
        return self._per_head("of_whole", "float32", CHUNKS)

    def scratch(self) -> list[Tensor]:
        """What is written beyond what the forward's programs write."""
        inside = [self.of_effective, self.of_solved] * self.matrices
        if not self.rungs.outer:
            return inside
        found = [*inside, self.reads, self.pull] + [self.rungs.moves(0)] * (self.matrices and self.rungs.outer > 1)
        for level in range(self.rungs.lowest, self.rungs.outer):
            found += [self.grad_states(level)] + [self.grad_moves(level)] * self.matrices
        if self.matrices:
            found += [*self.sums, self.passes, self.walks, self.pulls]
            found += [self.of_lifted, self.of_ending, self.of_whole]
        return found + [self.kept, self.gains, self.gained, self.among] * self.learns_decay

    def gate_bounds(self) -> dict[int, tile.Value]:
        """Of a store of weights' gradients."""
        return {1: tile.param(self.own.writes.length)}
