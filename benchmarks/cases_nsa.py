"""The cases around native sparse attention: lists that 128 queries share, the whole layer, and its selector alone."""

from dataclasses import dataclass

import torch

from sparsec.benchmarks.cases import Case, Inputs, Knobs, SelectedCase
from sparsec.benchmarks.draws import causal_block_choice


@dataclass(frozen=True)
class BlocksCase(SelectedCase):
    """Given blocks of keys that all queries of a block share, the own block among them: a block list, causal inside."""

    slots: int = 16
    block: int = 128

    @property
    def knobs(self) -> Knobs:
        return {**super().knobs, "query_block": self.queries}

    @property
    def queries(self) -> int:
        return self.block

    @property
    def flops(self) -> int:
        """Two products with every pair of whole blocks that are listed, and five more backward."""
        blocks = self.T // self.block
        listed = sum(min(n + 1, self.slots) for n in range(blocks))
        return 2 * self.B * self.H * self.D * self.block**2 * listed * (7 if self.train else 2)

    def lists(self, seed: int = 0) -> torch.Tensor:
        """Ascending lists per block of queries, int32 [B, T / block, HKV, slots], -1 where too few exist."""
        generator, count = self.generator(seed), self.T // self.block
        own = torch.arange(count, device=self.device)[None, :, None, None].expand(self.B, -1, self.HKV, 1)
        earlier = causal_block_choice((self.B, count, self.HKV), self.slots - 1, 1, 0.0, generator, own=False)
        return torch.cat([earlier, own], -1).sort(-1).values.int().contiguous()

    def inputs(self, seed: int = 0) -> Inputs:
        return self._attention_inputs(self.generator(seed)) | {"indices": self.lists(seed)}


@dataclass(frozen=True)
class NsaCase(Case):
    """NSA's compression and selection under given gates: windows of `size` tokens every `stride`, `slots` blocks.

    Pooled keys are rounded to the inputs' dtype before blocks are chosen by them, as peers do; rows that hang on the
    rounding of a mean are left open.
    """

    slots: int = 16
    block: int = 64
    size: int = 64
    stride: int = 64

    preset = "nsa"
    tie = 1e-4
    peer_tie = 5e-4
    learned = ("q", "k", "v", "g_cmp", "g_slc")

    @property
    def knobs(self) -> Knobs:
        shape: Knobs = {"block": self.block, "k": self.slots, "size": self.size, "stride": self.stride}
        return {**shape, "branches": "cmp+slc", "gates": "given", "rounding": "storage"}

    @property
    def attended(self) -> int:
        return self.slots * self.block + self.T // self.stride // 2

    def inputs(self, seed: int = 0) -> Inputs:
        generator, shape = self.generator(seed), (self.B, self.T, self.H)
        made = self._attention_inputs(generator)
        gates = {n: torch.rand(shape, device=self.device, generator=generator) for n in ("g_cmp", "g_slc")}
        return made | {name: gate.to(self.dtype) for name, gate in gates.items()}


@dataclass(frozen=True)
class SelectorCase(NsaCase):
    """NSA's selector alone: a softmax per head over the windows, summed over the group, forced blocks, top-k."""

    @property
    def knobs(self) -> Knobs:
        shape: Knobs = {"block": self.block, "k": self.slots, "size": self.size, "stride": self.stride}
        return {**shape, "branches": "slc", "rounding": "storage"}

    @property
    def flops(self) -> int:
        """Every causal pair of a query and a window, scored once."""
        return 2 * self.B * self.H * self.D * self.T * (self.T // self.stride) // 2

    @property
    def least_bytes(self) -> int:
        """Queries and keys read once, lists written once."""
        read = self.B * self.T * (self.H + self.HKV) * self.D * self.dtype.itemsize
        return read + 4 * self.B * self.T * self.HKV * self.slots

    def inputs(self, seed: int = 0) -> Inputs:
        return self._attention_inputs(self.generator(seed))
