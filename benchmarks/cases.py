"""The cases: shapes, sparsity and inputs, fixed so that figures of different runs and sides are comparable.

Tensors are [B, T, heads, D]. `preset` and `knobs` say which sparsec variant a case is. FLOPs count useful work only,
with every query taken as attending its full set, as the published figures of the peers do.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch

from sparsec.benchmarks.draws import causal_block_choice, normal, smooth_normal

TIE = 1e-5
"""Scores nearer than this, relative to the best, may be chosen either way: fp32 and fp64 may differ."""

Inputs = dict[str, torch.Tensor]
Knobs = Mapping[str, int | float | str]


@dataclass(frozen=True)
class Case:
    """What every case has.

    Attributes:
        span: makes the queries that select alike between neighbours (1: independent).
        train: one forward and one backward, for gradients of what is ``learned``.
        tie, peer_tie: how near scores must be for a row to be left open; peers may round what they choose by.
        per_query_head: the inputs that have H heads; all others have HKV.
    """

    name: str
    B: int
    H: int
    HKV: int
    T: int
    D: int
    device: str = field(default="cuda", kw_only=True)
    dtype: torch.dtype = field(default=torch.bfloat16, kw_only=True)
    span: int = field(default=1, kw_only=True)
    train: bool = field(default=False, kw_only=True)

    preset = "full"
    tie = TIE
    peer_tie = TIE
    learned: ClassVar[tuple[str, ...]] = ("q", "k", "v")
    per_query_head: ClassVar[tuple[str, ...]] = ("q", "g_cmp", "g_slc")

    @property
    def group(self) -> int:
        """Query heads per key/value head."""
        return self.H // self.HKV

    @property
    def knobs(self) -> Knobs:
        """Knobs of the preset."""
        return {}

    @property
    def attended(self) -> int:
        """Keys in a query's full set."""
        return self.T

    @property
    def flops(self) -> int:
        """Useful floating-point operations of the attention itself: two products, and five more backward."""
        product = 2 * self.B * self.H * self.D * self.T * min(self.attended, self.T)
        return product * (7 if self.train else 2)

    @property
    def least_bytes(self) -> int:
        """Bytes of q, k, v and o, each moved once."""
        return 2 * self.B * self.T * (self.H + self.HKV) * self.D * self.dtype.itemsize

    def generator(self, seed: int) -> torch.Generator:
        """A generator on the case's device."""
        return torch.Generator(self.device).manual_seed(seed)

    def inputs(self, seed: int = 0) -> Inputs:
        """q, k and v; cases that need more add to it."""
        return self._attention_inputs(self.generator(seed))

    def _attention_inputs(self, generator: torch.Generator) -> Inputs:
        key_shape = (self.B, self.T, self.HKV, self.D)
        q = smooth_normal((self.B, self.T, self.H, self.D), self.span, self.dtype, generator)
        return {"q": q, "k": normal(key_shape, self.dtype, generator), "v": normal(key_shape, self.dtype, generator)}


@dataclass(frozen=True)
class FullCase(Case):
    """Every earlier key: dense causal attention, written as a variant like any other."""

    @property
    def attended(self) -> int:
        return (self.T + 1) // 2


@dataclass(frozen=True)
class WindowCase(Case):
    """Causal window and the first `memory` tokens: key j of query i where j <= i and (i - j < window or j < memory)."""

    window: int = 1024
    memory: int = 64

    preset = "streaming"

    @property
    def knobs(self) -> Knobs:
        return {"window": self.window, "sinks": self.memory}

    @property
    def attended(self) -> int:
        return self.window + self.memory


@dataclass(frozen=True)
class SelectedCase(Case):
    """Given blocks of keys per token and key/value head (`indices`), causal inside them: NSA's selected branch."""

    slots: int = 16
    block: int = 64
    keep: float = 0.0

    preset = "nsa"

    @property
    def knobs(self) -> Knobs:
        return {"block": self.block, "k": self.slots, "selection": "given", "branches": "slc"}

    @property
    def queries(self) -> int:
        """How many queries share a list."""
        return 1

    @property
    def attended(self) -> int:
        return self.slots * self.block

    def inputs(self, seed: int = 0) -> Inputs:
        generator = self.generator(seed)
        shape = (self.B, self.T, self.HKV)
        indices = causal_block_choice(shape, self.slots, self.block, self.keep, generator)
        return self._attention_inputs(generator) | {"indices": indices}


@dataclass(frozen=True)
class HsaCase(Case):
    """HSA whole: retrieval queries `r` score `landmarks`, top-k complete past chunks, stick-breaking chunk weights.

    `span` smooths r over the tokens; q stays independent. `beside` says who is timed beside it: compositions of torch
    operators, or sparsec's own NSA that reads as many tokens.
    """

    chunk: int = 64
    k: int = 8
    retrieval: int = 64
    beside: str = field(default="torch", kw_only=True)

    preset = "hsa"
    learned = ("q", "k", "v", "r", "l")

    @property
    def knobs(self) -> Knobs:
        return {"chunk": self.chunk, "k": self.k}

    @property
    def attended(self) -> int:
        return self.k * self.chunk

    def inputs(self, seed: int = 0) -> Inputs:
        generator = self.generator(seed)
        r = smooth_normal((self.B, self.T, self.HKV, self.retrieval), self.span, self.dtype, generator)
        landmarks = normal((self.B, self.T // self.chunk, self.HKV, self.retrieval), self.dtype, generator)
        return replace(self, span=1)._attention_inputs(generator) | {"r": r, "l": landmarks}


@dataclass(frozen=True)
class MobaCase(Case):
    """MoBA whole: per query head, own block and the k - 1 best past blocks by q · mean(keys), one softmax over all."""

    block: int = 512
    k: int = 3

    preset = "moba"

    @property
    def knobs(self) -> Knobs:
        return {"block": self.block, "k": self.k}

    @property
    def attended(self) -> int:
        return self.k * self.block - self.block // 2
