"""A layer of any variant: hidden states -> inputs by name -> the op -> norm and gate -> hidden states."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import rms_norm, silu

from sparsec.ir.dims import value
from sparsec.ir.error import DeclarationError, InputError
from sparsec.ir.lengths import lengths
from sparsec.ir.op import Op
from sparsec.ir.variant import Variant, dim_names
from sparsec.nn import sources
from sparsec.nn.layer_cache import LayerCache, fits
from sparsec.nn.rotary import rotate
from sparsec.runtime.compiled import Compiled, compile
from sparsec.runtime.decode.declared import Declared, declared
from sparsec.scalar.expr import Expr
from sparsec.scalar.walk import variables


@cache
def _kept(variant: Variant) -> Declared:
    """What caches of a variant know of it."""
    return declared(variant)


@cache
def compiled(variant: Variant, device: str) -> Compiled:
    """The kernels of a variant on "cpu" or "cuda", shared by all layers that have it."""
    return compile(variant, target=device)


def without_losses(variant: Variant) -> Variant:
    """The first output alone, with the inputs that it reads: what decode steps compute."""
    if len(variant.outputs) == 1:
        return variant
    alone = variant.with_outputs(variant.outputs[:1])
    return alone.with_outputs(alone.outputs, [x for x in alone.parameters if x in alone.nodes])


def roles(variant: Variant) -> dict[str, str]:
    """Inputs that are operands as they are -> the operand: decay, beta, level_gate …"""
    found = ((source, name) for node in variant.nodes for name, source in node.operands.items())
    return {str(source["name"]): name for source, name in found if source.op is Op.INPUT}


class Layer(nn.Module):
    """One layer of a model over a variant with inputs ``[B,T,…]`` and parameters of its own.

    Every input is made by what it is (``source``), parameters without tokens are the module's own. The output is
    normalised per head (RMS, fp32) and multiplied by silu of a linear map where ``gated``, then mapped back to ``dim``.

    Args:
        variant: what is computed.
        dim: channels of hidden states.
        heads: query heads, and ``kv_heads`` of keys and states (``HKV`` and ``HV``), by default as many.
        head_dim: channels of queries and keys; ``value_dim`` of values, by default as many.
        width: tokens of the short convolutions of queries, keys and values; 0 for none.
        rotary: whether queries and keys are rotated by position.
        gated: whether outputs are normalised and gated.
        slots: of a memory of slots (``M``).
        index_heads, index_dim: heads and channels of an indexer (``HI``, ``DI``), by default 4 of ``head_dim``.
        made: input names -> kinds of source, where the rules of ``source`` do not fit.

    Attributes:
        losses: what the variant returned beside its output in the last call, such as a balance loss; none of a
            decode step, which computes the output alone.
    """

    def __init__(
        self, variant: Variant, dim: int, heads: int, *, head_dim: int = 64, kv_heads: int | None = None,
        value_dim: int | None = None, width: int = 4, rotary: bool = False, gated: bool = True, slots: int = 64,
        index_heads: int = 4, index_dim: int | None = None, made: Mapping[str, type[sources.Source]] | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        states = kv_heads or heads
        value_dim = value_dim or head_dim
        self.variant, self.step = variant, without_losses(variant)
        self.dim, self.width, self.rotary = dim, width, rotary
        self.sizes = {
            "H": heads,
            "HKV": states,
            "HV": states,
            "D": head_dim,
            "DV": value_dim,
            "DR": head_dim,
            "DX": dim,
            "M": slots,
            "F": head_dim,
            "HI": index_heads,
            "DI": head_dim if index_dim is None else index_dim,
        }
        self.made, self.roles = dict(made or {}), roles(variant)
        self.losses: tuple[Tensor, ...] = ()
        self.sources = nn.ModuleDict()
        self.own = nn.ParameterDict()
        for name, spec in variant.inputs.items():
            self._make(name, spec.shape, spec.dtype)
        outputs = (states if "HV" in dim_names(variant) else heads) * value_dim
        self.gate = nn.Linear(dim, outputs, bias=False) if gated else None
        self.norm = nn.Parameter(torch.ones(value_dim)) if gated else None
        self.out = nn.Linear(outputs, dim, bias=False)

    def __getstate__(self) -> dict[str, Any]:
        """What copies and files hold: not the last call's losses, which belong to its graph."""
        return {**self.__dict__, "losses": ()}

    def extra_repr(self) -> str:
        """What its parts do not say."""
        sizes = " ".join(f"{name}={self.sizes[name]}" for name in ("H", "HKV", "D", "DV"))
        return f"{self.variant.name}, dim={self.dim}, {sizes}" + ", rotary" * self.rotary

    def _make(self, name: str, shape: Any, dtype: str) -> None:
        tokens = lengths(self.variant).names
        counted = [bool({str(dim)} & tokens) for dim in shape]
        if dtype != "int32" and len(shape) > 2 and str(shape[0]) == "B" and counted[1]:
            trailing = self._sizes(name, shape[2:])
            if self.rotary and name[0] in "qk" and trailing[-1] % 2:
                where, rule = f"layer of {self.variant.name}", "channels are rotated by position in pairs"
                raise DeclarationError(
                    where, f"{name} of {trailing[-1]} channels", rule, "an even number, or rotary=False"
                )
            self.sources[name] = self.source(name, trailing)
        elif dtype != "int32" and str(shape[0]) != "B" and not any(counted):
            self.own[name] = nn.Parameter(self.parameter(name, self._sizes(name, shape)))
        else:
            rule = "a layer makes inputs with a row per token, and parameters"
            raise DeclarationError(
                f"layer of {self.variant.name}", f"input {name}", rule, "a knob that does without it"
            )

    def _sizes(self, name: str, dims: Sequence[Expr]) -> tuple[int, ...]:
        """Sizes of an input's dims. Raises DeclarationError for one that no option of a layer sets."""
        for dim in dims:
            if unknown := sorted(variables(dim) - self.sizes.keys()):
                rule = f"a layer has the dims {', '.join(self.sizes)}"
                where = f"layer of {self.variant.name}"
                raise DeclarationError(where, f"the dim {unknown[0]} of {name}", rule, "declare it by these")
        return tuple(value(dim, self.sizes) for dim in dims)

    def source(self, name: str, trailing: tuple[int, ...]) -> sources.Source:
        """What makes an input: by ``made``, by what a write reads it as, else by its name and dims."""
        used = self.roles.get(name, "")
        if name in self.made:
            return self.made[name](name, trailing, self.dim)
        if used == "decay":
            return (sources.ChannelDecay if len(trailing) == 2 else sources.HeadDecay)(name, trailing, self.dim)
        if used in ("beta", "level_gate"):
            return (sources.Rate if used == "beta" else sources.Positive)(name, trailing, self.dim, bias=True)
        if trailing == (1, self.dim):
            return sources.Hidden(name, trailing, self.dim)
        if name[0] in "qkv":
            return sources.Projected(name, trailing, self.dim, self.width)
        if len(trailing) == 2:
            return sources.LowRank(name, trailing, self.dim)
        return sources.Projected(name, trailing, self.dim, bias=True)

    def parameter(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """First values of a parameter: Mamba-2's for A_log and dt_bias, a router's rows, 1 or 0 for the rest."""
        if name in ("A_log", "dt_bias"):
            return sources.rates(*shape) if name == "A_log" else sources.steps(*shape)
        if len(shape) == 3:
            return torch.randn(shape).div(math.sqrt(shape[-1]))
        return torch.zeros(shape) if name == "sink" else torch.ones(shape)

    def init_cache(self, batch: int, max_length: int | None = None, **options: Any) -> LayerCache:
        """An empty decode cache; ``max_length`` tokens where keys are kept. See ``Compiled.init_cache``."""
        step = compiled(self.step, self.out.weight.device.type)
        return LayerCache(step.init_cache(batch, max_length, **options))

    def accepts(self, cache: LayerCache, x: Tensor) -> None:
        """Raises InputError where a cache is no cache of this layer, or has no room for the tokens of x."""
        if cache.op.declared != _kept(self.step):
            rule = f"this layer computes {self.step.name}"
            raise InputError("cache", f"made for {cache.op.declared.name}", rule, "the layers' caches in their order")
        fits(cache, x)

    def op(self, device: torch.device) -> Compiled:
        """The kernels for a device."""
        return compiled(self.variant, device.type)

    def inputs(self, x: Tensor, cache: LayerCache | None = None) -> dict[str, Tensor]:
        """The op's inputs for hidden states ``[B,T,dim]``."""
        tails = None if cache is None else cache.tails
        made = {name: source(x, tails) for name, source in self.sources.items()}
        if self.rotary:
            start = 0 if cache is None else cache.seen
            made |= {name: rotate(y, start) for name, y in made.items() if name[0] in "qk"}
        return self.agreed(made | dict(self.own.items()))

    def agreed(self, made: dict[str, Tensor]) -> dict[str, Tensor]:
        """fp32 where the op wants it, else one dtype, that of the values."""
        wanted = self.variant.inputs
        low = next((y.dtype for name, y in made.items() if name[0] == "v"), torch.float32)
        return {n: (y.float() if wanted[n].dtype == "float32" else y.to(low)).contiguous() for n, y in made.items()}

    def forward(self, x: Tensor, cache: LayerCache | None = None) -> Tensor:
        """``[B,T,dim]`` -> ``[B,T,dim]``; with a cache, of the tokens that follow those it has seen.

        Raises InputError for hidden states of another shape.
        """
        if x.dim() != 3 or x.shape[2] != self.dim:
            rule = f"hidden states are [B, T, {self.dim}]"
            raise InputError("x", f"shape {tuple(x.shape)}", rule, "x[None] where the batch is missing")
        if cache is not None:
            self.accepts(cache, x)
        before = {} if cache is None else dict(cache.tails)
        try:
            named = self.inputs(x, cache)
            o, *losses = self.outputs(named, x, cache)
        except Exception:
            if cache is not None:
                cache.tails = before  # a step that is refused leaves the cache as it was
            raise
        self.losses = tuple(losses)
        done: Tensor = self.read(self.after(o, named), x)
        return done

    def outputs(self, named: dict[str, Tensor], x: Tensor, cache: LayerCache | None) -> tuple[Tensor, ...]:
        """What the op returns; of a decode step, whose tokens the cache counts, the output alone."""
        if cache is None:
            o = self.op(x.device)(**named)
            return o if isinstance(o, tuple) else (o,)
        read = {name: named[name] for name in self.step.inputs}
        o = compiled(self.step, x.device.type).decode(cache.op, **read)
        cache.seen += x.shape[1]
        assert isinstance(o, Tensor)
        return (o,)

    def after(self, o: Tensor, named: dict[str, Tensor]) -> Tensor:
        """What a family adds to the op's output ``[B,T,H,DV]``."""
        return o

    def read(self, o: Tensor, x: Tensor) -> Tensor:
        """Norm, gate and the map back."""
        if self.gate is not None and self.norm is not None:
            o = rms_norm(o.float(), o.shape[-1:], self.norm.float(), 1e-5).to(o.dtype).flatten(2) * silu(self.gate(x))
        else:
            o = o.flatten(2)
        done: Tensor = self.out(o)
        return done
