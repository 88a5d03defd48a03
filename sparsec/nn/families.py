"""A module per family: the preset, and the defaults of its source. Arguments are those of ``Layer``."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sparsec.frontends.preset import find, preset
from sparsec.ir.error import DeclarationError
from sparsec.ir.suggest import did_you_mean
from sparsec.nn import sources
from sparsec.nn.layer import Layer

LAYER = {p.name for p in inspect.signature(Layer.__init__).parameters.values() if p.kind is p.KEYWORD_ONLY}
"""The options of every layer."""


def known(family: type[Layer], preset: str, options: Mapping[str, Any], more: set[str]) -> set[str]:
    """The knobs of a preset. Raises DeclarationError for the first option that is neither one nor among ``more``."""
    knobs = {knob.name for knob in find(preset).knobs}
    for name, value in options.items():
        if name not in knobs | more:
            rule = f"neither the layer nor the preset {preset} has such an option"
            raise DeclarationError(
                f"nn.{family.__name__}", f"{name} = {value!r}", rule, did_you_mean(name, knobs | more)
            )
    return knobs


class Attention(Layer):
    """Softmax attention of any preset (``full``, ``streaming``, ``hsa``, ``nsa``, ``moba`` …) with its knobs.

    As in Llama: no convolutions, outputs without norm and gate, rotary positions unless ``rotary`` is False.
    """

    def __init__(self, dim: int, heads: int, name: str = "full", *, rotary: bool = True, width: int = 0,
                 kv_heads: int | None = None, head_dim: int = 64, index_heads: int = 4, index_dim: int | None = None,
                 **knobs: Any) -> None:  # fmt: skip
        known(type(self), name, knobs, {"rotary", "width", "kv_heads", "head_dim", "index_heads", "index_dim"})
        super().__init__(
            preset(name, **knobs), dim, heads, head_dim=head_dim, kv_heads=kv_heads, width=width, rotary=rotary,
            gated=False, index_heads=index_heads, index_dim=index_dim,
        )  # fmt: skip


class HSA(Attention):
    """Hierarchical sparse attention beside a window (arXiv 2504.16795): mean landmarks, queries of their own for them.

    Without rotary positions, which is what lets chunks be found beyond the trained length; convolutions instead.
    """

    def __init__(self, dim: int, heads: int, *, chunk: int = 64, k: int = 8, window: int = 128, rotary: bool = False,
                 width: int = 4, **options: Any) -> None:  # fmt: skip
        knobs: dict[str, Any] = {"chunk": chunk, "k": k, "window": window, "landmark": "mean"} | options
        super().__init__(dim, heads, "hsa", rotary=rotary, width=width, **knobs)


class State(Layer):
    """A recurrence by its preset's name; ``knobs`` are the preset's."""

    preset: str
    defaults: dict[str, Any] = {}  # noqa: RUF012

    def __init__(self, dim: int, heads: int, **options: Any) -> None:
        options = {**self.defaults, **options}
        of_preset = known(type(self), self.preset, options, LAYER)
        knobs = {name: options.pop(name) for name in list(options) if name in of_preset}
        super().__init__(preset(self.preset, **knobs), dim, heads, **options)


class LinearAttention(State):
    """Linear attention (arXiv 2006.16236), elu + 1 on queries and keys, output norm in place of the normaliser."""

    preset = "linear"
    defaults = {"width": 0}  # noqa: RUF012


class RetNet(State):
    """Retention (arXiv 2307.08621): rotary positions, fixed decays per head."""

    preset = "retnet"
    defaults = {"width": 0, "rotary": True, "made": {"g": sources.FixedDecay}}  # noqa: RUF012


class Mamba2(State):
    """Mamba-2 (arXiv 2405.21060): one key and query head per ``heads`` group, ``kv_heads`` states, and the skip D x."""

    preset = "mamba2"
    defaults = {"shared": "keys", "made": {"dt": sources.Projected}}  # noqa: RUF012

    def __init__(self, dim: int, heads: int, **options: Any) -> None:
        super().__init__(dim, heads, **options)
        self.skip = nn.Parameter(torch.ones(self.sizes["HV"]))

    def after(self, o: Tensor, named: dict[str, Tensor]) -> Tensor:
        return o + self.skip.to(o.dtype).unsqueeze(-1) * named["v"]


class GLA(State):
    """Gated linear attention (arXiv 2312.06635): low-rank gates with a decay per key channel, no convolutions."""

    preset = "gla"
    defaults = {"width": 0}  # noqa: RUF012


class HGRN2(State):
    """HGRN2 (arXiv 2404.07904): forget gates make the keys; ``lower`` is a layer's least gate."""

    preset = "hgrn2"
    defaults = {"width": 0, "made": {"f": sources.Projected}}  # noqa: RUF012


class DeltaNet(State):
    """DeltaNet (arXiv 2406.06484): convolutions with silu, unit queries and keys, beta = σ(·)."""

    preset = "deltanet"


class GatedDeltaNet(State):
    """Gated DeltaNet (arXiv 2412.06464): DeltaNet with Mamba-2's decay per head."""

    preset = "gdn"


class DeltaProduct(State):
    """Gated DeltaProduct (arXiv 2502.10297): Gated DeltaNet with several ``steps`` per token, which may reflect."""

    preset = "delta_product"


class GatedDeltaNet2(State):
    """Gated DeltaNet 2 (arXiv 2605.22791): gates per channel of what is erased and written, GLA's decays."""

    preset = "gdn2"


class KDA(State):
    """Kimi Delta Attention (arXiv 2510.26692): Gated DeltaNet with low-rank decays per key channel."""

    preset = "kda"


class RWKV7(State):
    """RWKV-7's time mixing (arXiv 2503.14456): low-rank decays and rates; convolutions stand for the token shift."""

    preset = "rwkv7"
    defaults = {"made": {"w": sources.LowRank, "r": sources.LowRank}}  # noqa: RUF012


class LogLinear(State):
    """Log-linear attention (arXiv 2506.04761): Mamba-2's decays, a positive weight per level."""

    preset = "log_linear"


class GSA(State):
    """Gated slot attention (arXiv 2409.07146): ``slots`` keys and values that fade by their own gates."""

    preset = "gsa"
    defaults = {"width": 0, "made": {"f": sources.Projected}}  # noqa: RUF012


class LoLA(State):
    """LoLA (arXiv 2505.23666): a window, a cache and a state, with positive features by linear maps of their own."""

    preset = "lola"
    defaults = {"width": 0, "rotary": True, "gated": False, "made": dict.fromkeys(("fq", "fk"), sources.Positive)}  # noqa: RUF012


class SSE(State):
    """Sparse state expansion (arXiv 2507.16577): a shared state beside partitions that a router chooses."""

    preset = "sse"


class RSA(State):
    """Recursive sparse attention: residual levels of sparsely activated states (see the preset ``rsa``)."""

    preset = "rsa"
