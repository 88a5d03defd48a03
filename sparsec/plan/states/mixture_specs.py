"""Specs of mixtures: how much each of a few candidates weighs for a query, by where its mass of keys points."""

from __future__ import annotations

from dataclasses import dataclass

from sparsec.plan.states.scan_specs import Scan, ScanGrad


@dataclass(frozen=True, slots=True)
class Mixture:
    """out = gain · softmax over C candidates of scale · q · z/|z| + bias; z/|z| is 0 where z is.

    Attributes:
        q: ``[B,N,H,D]`` of ``dtype``; head h has the candidates of head h // (H / HKV).
        z: C tensors fp32 ``[B,N,HKV,D]``.
        out: fp32 ``[B,N,H,C]``; bias and gain ``[B,N,H,C]`` of dtypes of their own, None for 0 and 1.
        top: how many candidates stay, the ``first`` ones before all others, ties to the earlier; None for all.
        tie: scores no farther apart are a tie.
    """

    name: str
    q: str
    z: tuple[str, ...]
    out: str
    heads: int
    key_heads: int
    dim: int
    scale: float
    dtype: str
    top: int | None = None
    first: int = 1
    tie: float = 0.0
    bias: tuple[str, str] | None = None
    gain: tuple[str, str] | None = None
    length: str = "N"

    @property
    def group(self) -> int:
        """Query heads per candidates' head."""
        return self.heads // self.key_heads


@dataclass(frozen=True, slots=True)
class MixtureGrad:
    """Gradients of what a mixture reads, each as (buffer, dtype); None is not asked for.

    Attributes:
        grad: of the weights, fp32 ``[B,N,H,C]``.
        terms: shaped as the queries and added to their gradient.
    """

    name: str
    forward: Mixture
    grad: str
    grad_q: tuple[str, str] | None
    grad_z: tuple[tuple[str, str] | None, ...]
    grad_bias: tuple[str, str] | None = None
    grad_gain: tuple[str, str] | None = None
    terms: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class StateMixture:
    """A mixture of masses of keys that nothing else reads: scores leave the scans in place of the masses.

    Attributes:
        mixture: names the masses as its candidates, but no buffer has them; it has no gains.
        masses: the scans whose one read is a candidate, in the order of the candidates.
    """

    name: str
    mixture: Mixture
    masses: tuple[Scan, ...]

    @property
    def dtype(self) -> str:
        """Of the queries."""
        return self.mixture.dtype


@dataclass(frozen=True, slots=True)
class StateMixtureGrad:
    """Gradients of what such a mixture and its masses read.

    Attributes:
        mixture: has gradients of masses as names alone.
        masses: per candidate its adjoint; None where nobody asks.
    """

    name: str
    forward: StateMixture
    mixture: MixtureGrad
    masses: tuple[ScanGrad | None, ...]


AnyMixture = Mixture | StateMixture
AnyMixtureGrad = MixtureGrad | StateMixtureGrad
