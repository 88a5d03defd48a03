"""HSA whose chunks are chosen in sections that are chosen first."""

from dataclasses import dataclass

import torch

from sparsec.benchmarks.cases import HsaCase, Inputs, Knobs


@dataclass(frozen=True)
class SectionsCase(HsaCase):
    """HSA as `HsaCase`, its k chunks in the own and the best other sections of `fanout` chunks.

    A section's landmark is the mean of its chunks'.
    """

    sections: int = 4
    fanout: int = 8

    @property
    def knobs(self) -> Knobs:
        return {**super().knobs, "sections": self.sections, "fanout": self.fanout}

    def inputs(self, seed: int = 0) -> Inputs:
        found = super().inputs(seed)
        means = [part.float().mean(1).to(self.dtype) for part in found["l"].split(self.fanout, 1)]
        return found | {"ls": torch.stack(means, 1)}
