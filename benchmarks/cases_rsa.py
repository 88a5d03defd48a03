"""Cases of recursive sparse attention: levels of parts, of which a router chooses one per token and level."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch.nn.functional import logsigmoid, normalize

from sparsec.benchmarks.cases import Case, Inputs, Knobs
from sparsec.benchmarks.cases_sse import MARGIN
from sparsec.benchmarks.draws import normal
from sparsec.benchmarks.levels import cleared

HIDDEN = 256
"""What the routers read per token."""


@dataclass(frozen=True)
class RsaCase(Case):
    """Three levels of 1, 4 and 16 states, delta rules, what a level leaves clipped, a softmax over states.

    Attributes:
        parts: states per level.
        clip: of what a level leaves.
    """

    parts: tuple[int, ...] = (1, 4, 16)
    clip: float = 1.0

    preset = "rsa"
    learned: ClassVar[tuple[str, ...]] = (
        "q", "k", "v", "beta_1", "g_1", "c_1", "beta_2", "g_2", "c_2", "beta_3", "g_3", "x", "w_2", "w_3",
    )  # fmt: skip

    @property
    def knobs(self) -> Knobs:
        return {
            "levels": len(self.parts),
            "parts": self.parts[1],
            "branching": self.parts[2] // self.parts[1],
            "raw": True,
        }

    @property
    def flops(self) -> int:
        """A state per level and token, as ``ScanCase`` counts them."""
        products = 3 * len(self.parts) * (3 if self.train else 1)
        return 2 * self.B * self.T * self.H * self.D * self.D * products

    @property
    def least_bytes(self) -> int:
        """Queries, keys, values and the output once."""
        return 4 * self.B * self.T * self.H * self.D * self.dtype.itemsize

    def inputs(self, seed: int = 0) -> Inputs:
        generator, shape = self.generator(seed), (self.B, self.T, self.H, self.D)
        made = {name: normal(shape, self.dtype, generator) for name in ("q", "k", "v")}
        made |= {n: normalize(made[n].float(), dim=-1).to(self.dtype) for n in ("q", "k")}
        for level in range(1, len(self.parts) + 1):
            drawn = [torch.randn(shape[:3], device=self.device, generator=generator) for _ in range(3)]
            made |= {f"beta_{level}": drawn[0].sigmoid().to(self.dtype), f"g_{level}": logsigmoid(drawn[1] + 3)}
            made |= {f"c_{level}": drawn[2].to(self.dtype)} if level < len(self.parts) else {}
        first = {n: made[n] for n in ("q", "k", "v")} | {"rate": made["beta_1"], "g": made["g_1"]}
        return made | self._routed(generator) | {"v": cleared(first, self.clip)}

    def _routed(self, generator: torch.Generator) -> Inputs:
        """x ``[B,T,1,DX]`` and w_l ``[parts,1,DX]``, scores of about unit size with a clear best at every level."""
        x = torch.randn((self.B, self.T, 1, HIDDEN), device=self.device, generator=generator)
        rows: Inputs = {}
        for level, count in enumerate(self.parts, 1):
            if count > 1:
                drawn = torch.randn((count, 1, HIDDEN), device=self.device, generator=generator) / HIDDEN**0.5
                rows[f"w_{level}"] = drawn.to(self.dtype)
        for w in rows.values():
            row = w[:, 0].float()
            best = (x @ row.T).argmax(-1)
            x = x + 3 * MARGIN * normalize(row, dim=-1)[best] * (1 / row.norm(dim=-1))[best][..., None]
        return {"x": x.to(self.dtype)} | rows
