"""Cases of matrix states: the recurrences whose hand-written GPU kernels are public, with the published draws."""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch.nn.functional import logsigmoid, normalize

from sparsec.benchmarks.cases import Case, Inputs, Knobs
from sparsec.benchmarks.draws import normal


@dataclass(frozen=True)
class ScanCase(Case):
    """A scalar decay per token and head: M = e^g M + k vᵀ, o = D^-½ Mᵀq.

    Attributes:
        delta: writes are k (v − Mᵀk)ᵀ; where the case has a and b, b (Mᵀa)ᵀ of the undecayed M is added instead.
        scale: of queries.
    """

    preset = "retnet"
    learned: ClassVar[tuple[str, ...]] = ("q", "k", "v", "g")
    delta: ClassVar[bool] = False

    @property
    def scale(self) -> float:
        """Of queries."""
        return float(self.D**-0.5)

    @property
    def flops(self) -> int:
        """One product with the state per read and write, two more for what a rule reads before; backward twice that."""
        products = 3 if self.delta or "a" in self.learned else 2
        return 2 * self.B * self.T * self.H * self.D * self.D * products * (3 if self.train else 1)

    @property
    def least_bytes(self) -> int:
        """Every input and the output once."""
        wide = sum(1 for name in ("q", "k", "v", "a", "b") if name in self.learned) + 1
        return wide * self.B * self.T * self.H * self.D * self.dtype.itemsize

    def inputs(self, seed: int = 0) -> Inputs:
        generator = self.generator(seed)
        return self._attention_inputs(generator) | {"g": self._gates(generator, 0)}

    def _gates(self, generator: torch.Generator, dims: int) -> torch.Tensor:
        """Log-decays, fp32: per head, or per key channel and representable in half precision."""
        shape = (self.B, self.T, self.HKV, *[self.D] * dims)
        found = logsigmoid(torch.randn(shape, device=self.device, generator=generator) + 3)
        return found.clamp_min(-5).to(self.dtype).float() if dims else found

    def _unit(self, generator: torch.Generator) -> torch.Tensor:
        drawn = torch.randn((self.B, self.T, self.HKV, self.D), device=self.device, generator=generator)
        return normalize(drawn, dim=-1).to(self.dtype)

    def _rates(self, generator: torch.Generator) -> torch.Tensor:
        return torch.rand((self.B, self.T, self.HKV), device=self.device, generator=generator).to(self.dtype)


@dataclass(frozen=True)
class GlaCase(ScanCase):
    """A decay per key channel."""

    preset = "gla"

    @property
    def knobs(self) -> Knobs:
        return {"raw": True}

    def inputs(self, seed: int = 0) -> Inputs:
        generator = self.generator(seed)
        return self._attention_inputs(generator) | {"g": self._gates(generator, 1)}


@dataclass(frozen=True)
class DeltaCase(GlaCase):
    """The delta rule, without decay; keys of unit length."""

    preset = "deltanet"
    learned: ClassVar[tuple[str, ...]] = ("q", "k", "v", "beta")
    delta: ClassVar[bool] = True

    def inputs(self, seed: int = 0) -> Inputs:
        generator = self.generator(seed)
        made = self._attention_inputs(generator) | {"k": self._unit(generator)}
        return made | {"beta": self._rates(generator)}


@dataclass(frozen=True)
class GdnCase(DeltaCase):
    """The delta rule with a decay per head."""

    preset = "gdn"
    learned: ClassVar[tuple[str, ...]] = ("q", "k", "v", "g", "beta")

    def inputs(self, seed: int = 0) -> Inputs:
        return super().inputs(seed) | {"g": self._gates(self.generator(seed + 1), 0)}


@dataclass(frozen=True)
class ProductCase(GdnCase):
    """Several delta rules per token, of which the first comes after a decay per head.

    Attributes:
        steps: rules per token, whose keys, values and rates lie beside each other as heads.
    """

    steps: int = 2

    preset = "delta_product"

    @property
    def knobs(self) -> Knobs:
        return {"raw": True, "steps": self.steps}

    @property
    def flops(self) -> int:
        """A read, and two products per rule."""
        return 2 * self.B * self.T * self.H * self.D * self.D * (1 + 2 * self.steps) * (3 if self.train else 1)

    @property
    def least_bytes(self) -> int:
        """Keys and values of every rule, queries and the output."""
        return (2 + 2 * self.steps) * self.B * self.T * self.H * self.D * self.dtype.itemsize

    def inputs(self, seed: int = 0) -> Inputs:
        wide = replace(self, HKV=self.steps * self.HKV, H=self.steps * self.HKV)
        made = GdnCase.inputs(wide, seed)
        return made | {"q": super().inputs(seed)["q"], "g": self._gates(self.generator(seed + 1), 0)}


@dataclass(frozen=True)
class LevelsCase(ScanCase):
    """Levels of states on a Fenwick schedule, as many as T tokens have, with weights drawn between 0 and 1."""

    preset = "log_linear"
    learned: ClassVar[tuple[str, ...]] = ("q", "k", "v", "g", "lam")

    @property
    def levels(self) -> int:
        """Of T tokens."""
        return (self.T - 1).bit_length() + 1

    @property
    def knobs(self) -> Knobs:
        return {"raw": True, "levels": self.levels, "rule": "delta" if self.delta else "additive"}

    def inputs(self, seed: int = 0) -> Inputs:
        return super().inputs(seed) | {"lam": self._weights(seed)}

    def _weights(self, seed: int) -> torch.Tensor:
        shape = (self.B, self.T, self.H, self.levels)
        return torch.rand(shape, device=self.device, generator=self.generator(seed + 2))


@dataclass(frozen=True)
class GdnLevelsCase(LevelsCase):
    """The same with the gated delta rule; keys of unit length."""

    learned: ClassVar[tuple[str, ...]] = ("q", "k", "v", "g", "beta", "lam")
    delta: ClassVar[bool] = True

    def inputs(self, seed: int = 0) -> Inputs:
        generator = self.generator(seed)
        made = self._attention_inputs(generator) | {"k": self._unit(generator), "beta": self._rates(generator)}
        return made | {"g": self._gates(self.generator(seed + 1), 0), "lam": self._weights(seed)}


@dataclass(frozen=True)
class KdaCase(GdnCase):
    """The delta rule with a decay per key channel; queries of unit length too."""

    preset = "kda"

    def inputs(self, seed: int = 0) -> Inputs:
        generator = self.generator(seed + 1)
        return super().inputs(seed) | {"g": self._gates(generator, 1), "q": self._unit(generator)}


@dataclass(frozen=True)
class Rwkv7Case(GlaCase):
    """A decay per key channel, and an erase term b (Mᵀa)ᵀ that reads the undecayed state."""

    preset = "rwkv7"
    learned: ClassVar[tuple[str, ...]] = ("q", "k", "v", "g", "a", "b")

    @property
    def scale(self) -> float:
        return 1.0

    def inputs(self, seed: int = 0) -> Inputs:
        generator, shape = self.generator(seed), (self.B, self.T, self.HKV, self.D)
        drawn = torch.rand(shape, device=self.device, generator=generator)
        made = self._attention_inputs(generator) | {"g": (-0.6065 * drawn).clamp(max=-1e-6).to(self.dtype).float()}
        return made | {n: (normal(shape, torch.float32, generator) * 0.1).to(self.dtype) for n in ("a", "b")}
