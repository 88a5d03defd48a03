"""A case of LoLA: a window, a cache of the pairs that a linear state recalls worst, and that state for the others."""

from dataclasses import dataclass
from typing import ClassVar

from sparsec.benchmarks.cases import Case, Inputs, Knobs
from sparsec.benchmarks.draws import normal


@dataclass(frozen=True)
class LolaCase(Case):
    """Features of H and HKV heads, as wide as a head; forward only.

    Attributes:
        window, keep, chunk: tokens before a chunk that are seen, pairs of the cache, tokens that join it together.
    """

    window: int = 128
    keep: int = 128
    chunk: int = 64

    preset = "lola"
    tie = 1e-6
    peer_tie = 1e-6
    per_query_head: ClassVar[tuple[str, ...]] = ("q", "fq")

    @property
    def knobs(self) -> Knobs:
        return {"window": self.window, "keep": self.keep, "chunk": self.chunk}

    @property
    def attended(self) -> int:
        """Pairs that a query sees exactly, of its own chunk half."""
        return self.window + self.keep + self.chunk // 2

    @property
    def flops(self) -> int:
        """Exact attention, reads of the state, errors of all that may stay, and writes."""
        read, candidates = 2 * self.B * self.H * self.T * self.D * self.D, self.keep + self.chunk
        written = 2 * self.B * self.HKV * self.T * self.D * self.D
        return super().flops + read + written + written * candidates // self.chunk

    @property
    def least_bytes(self) -> int:
        """Bytes of q, fq and o, and of k, fk and v, each moved once."""
        return 3 * self.B * self.T * (self.H + self.HKV) * self.D * self.dtype.itemsize

    def inputs(self, seed: int = 0) -> Inputs:
        """Features are not negative."""
        generator = self.generator(seed)
        made = self._attention_inputs(generator)
        heads = {"fq": self.H, "fk": self.HKV}
        drawn = {n: normal((self.B, self.T, h, self.D), self.dtype, generator) for n, h in heads.items()}
        return made | {name: x.abs() for name, x in drawn.items()}
