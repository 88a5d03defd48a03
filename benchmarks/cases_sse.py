"""Cases of sparse state expansion: a shared state and partitions that a router chooses from, one per token."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch.nn.functional import logsigmoid, normalize

from sparsec.benchmarks.cases import Case, Inputs, Knobs
from sparsec.benchmarks.draws import normal

MARGIN = 0.05
"""How much more than any other the chosen part's score is at least, so that no rounding chooses another."""


@dataclass(frozen=True)
class SseCase(Case):
    """A decay per key channel; the router reads as many numbers per token as all heads together.

    Attributes:
        parts: partitions.
    """

    parts: int = 4

    preset = "sse"
    learned: ClassVar[tuple[str, ...]] = ("q1", "k1", "g1", "q2", "k2", "g2", "v", "x", "w")
    delta: ClassVar[bool] = False

    @property
    def knobs(self) -> Knobs:
        return {"parts": self.parts, "k": 1, "raw": True}

    @property
    def hidden(self) -> int:
        """What the router reads per token."""
        return self.H * self.D

    @property
    def flops(self) -> int:
        """Two states per token, as ``ScanCase`` counts them."""
        products = 3 if self.delta else 2
        return 4 * self.B * self.T * self.H * self.D * self.D * products * (3 if self.train else 1)

    @property
    def least_bytes(self) -> int:
        """Every input and the output once."""
        wide = sum(1 for name in ("q1", "k1", "q2", "k2", "v") if name in self.learned) + 1
        return (wide + 1) * self.B * self.T * self.H * self.D * self.dtype.itemsize

    def inputs(self, seed: int = 0) -> Inputs:
        generator, shape = self.generator(seed), (self.B, self.T, self.H, self.D)
        made = {name: normal(shape, self.dtype, generator) for name in ("q1", "k1", "q2", "k2", "v")}
        made |= {name: self._gates(generator) for name in ("g1", "g2")}
        return made | self._routed(generator)

    def _gates(self, generator: torch.Generator) -> torch.Tensor:
        shape = (self.B, self.T, self.H, *([] if self.delta else [self.D]))
        return logsigmoid(torch.randn(shape, device=self.device, generator=generator) + 3).clamp_min(-5)

    def _routed(self, generator: torch.Generator) -> Inputs:
        """x ``[B,T,1,DX]`` and w ``[parts,1,DX]``, scores of about unit size with a clear best."""
        x = torch.randn((self.B, self.T, 1, self.hidden), device=self.device, generator=generator)
        w = (torch.randn((self.parts, 1, self.hidden), device=self.device, generator=generator) / self.hidden**0.5).to(
            self.dtype
        )
        rows = w[:, 0].float()
        best = (x @ rows.T).argmax(-1)
        x = x + 3 * MARGIN * normalize(rows, dim=-1)[best] * (1 / rows.norm(dim=-1))[best][..., None]
        return {"x": x.to(self.dtype), "w": w}


@dataclass(frozen=True)
class SseGdnCase(SseCase):
    """Unit keys, a decay per head, the delta rule."""

    preset = "sse_gdn"
    learned: ClassVar[tuple[str, ...]] = ("q1", "k1", "g1", "beta1", "q2", "k2", "g2", "beta2", "v", "x", "w")
    delta: ClassVar[bool] = True

    def inputs(self, seed: int = 0) -> Inputs:
        generator, shape = self.generator(seed + 1), (self.B, self.T, self.H)
        made = super().inputs(seed)
        unit = {n: normalize(made[n].float(), dim=-1).to(self.dtype) for n in ("q1", "k1", "q2", "k2")}
        rates = {n: torch.rand(shape, device=self.device, generator=generator) for n in ("beta1", "beta2")}
        return made | unit | {name: x.to(self.dtype) for name, x in rates.items()}
