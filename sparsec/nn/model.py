"""A small language model over any layers: embedding, blocks of a mixing layer and an MLP, and the head."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from sparsec.ir.error import DeclarationError, InputError
from sparsec.nn.layer import Layer
from sparsec.nn.layer_cache import LayerCache
from sparsec.nn.undone import all_or_nothing, manner


class Mlp(nn.Module):
    """SwiGLU: down(silu(gate x) ⊙ up x) with ``mlp_ratio`` · dim hidden channels."""

    def __init__(self, dim: int, mlp_ratio: float = 8 / 3) -> None:
        super().__init__()
        hidden = int(dim * mlp_ratio) // 16 * 16
        self.both, self.down = nn.Linear(dim, 2 * hidden, bias=False), nn.Linear(hidden, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """``[…,dim]`` -> ``[…,dim]``."""
        gate, up = self.both(x).chunk(2, -1)
        done: Tensor = self.down(silu(gate) * up)
        return done


class Block(nn.Module):
    """x + layer(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, layer: Layer, dim: int, mlp_ratio: float = 8 / 3) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.RMSNorm(dim), nn.RMSNorm(dim)])
        self.layer, self.mlp = layer, Mlp(dim, mlp_ratio)

    def forward(self, x: Tensor, cache: LayerCache | None = None) -> Tensor:
        """``[B,T,dim]`` -> ``[B,T,dim]``."""
        x = x + self.layer(self.norms[0](x), cache)
        done: Tensor = x + self.mlp(self.norms[1](x))
        return done


class LanguageModel(nn.Module):
    """Logits ``[B,T,vocab_size]`` of token ids ``[B,T]``; the head shares the embedding.

    Matrices are drawn with deviation 0.02, as in GPT-2; biases and what decays start from are their sources' own.

    ``mlp_ratio`` · dim are the hidden channels of each block's MLP. Raises DeclarationError for layers of other dims.
    """

    def __init__(self, vocab_size: int, dim: int, layers: Sequence[Layer], mlp_ratio: float = 8 / 3) -> None:
        super().__init__()
        _check_dims(dim, layers)
        self.embedding = nn.Embedding(vocab_size, dim)
        self.blocks = nn.ModuleList([Block(layer, dim, mlp_ratio) for layer in layers])
        self.norm = nn.RMSNorm(dim)
        for part in self.modules():
            if isinstance(part, nn.Linear | nn.Embedding):
                nn.init.normal_(part.weight, std=0.02)

    def forward(self, ids: Tensor, caches: Sequence[LayerCache] | None = None) -> Tensor:
        """Logits; with caches, of the tokens that follow those they have seen."""
        x = self.hidden(ids, caches)
        return x @ self.embedding.weight.to(x.dtype).T

    def hidden(self, ids: Tensor, caches: Sequence[LayerCache] | None = None) -> Tensor:
        """Normalised hidden states ``[B,T,dim]``, for losses that need few logits."""
        if caches is None:
            return self._through(ids, [None] * len(self.blocks))
        self._check(ids, caches)
        with all_or_nothing(caches, manner(self, ids)):
            return self._through(ids, caches)

    def _through(self, ids: Tensor, caches: Sequence[LayerCache | None]) -> Tensor:
        x = self.embedding(ids)
        for block, cache in zip(self.blocks, caches, strict=True):
            x = block(x, cache)
        done: Tensor = self.norm(x)
        return done

    def _check(self, ids: Tensor, caches: Sequence[LayerCache]) -> None:
        """Raises InputError for caches and lengths that one of the layers refuses, before another has seen them."""
        if len(caches) != len(self.blocks):
            rule = f"there are {len(self.blocks)} layers"
            raise InputError("caches", f"{len(caches)} caches", rule, "model.init_caches(…)")
        for block, cache in zip(self.blocks, caches, strict=True):
            block.layer.accepts(cache, ids)  # type: ignore[union-attr, operator]

    def losses(self) -> list[Tensor]:
        """What the layers returned beside their outputs in the last call, such as balance losses, in order."""
        return [loss for block in self.blocks for loss in block.layer.losses]  # type: ignore[union-attr]

    def init_caches(self, batch: int, max_length: int | None = None) -> list[LayerCache]:
        """Empty caches, one per layer."""
        return [block.layer.init_cache(batch, max_length) for block in self.blocks]  # type: ignore[union-attr, operator]

    @torch.no_grad()
    def generate(self, ids: Tensor, max_new_tokens: int, temperature: float = 0.0) -> Tensor:
        """``ids`` ``[B,T]`` and ``max_new_tokens`` further tokens, the likeliest or drawn at a temperature.

        Raises InputError for a prompt without tokens and a temperature below 0.
        """
        if ids.dim() != 2 or not ids.shape[1]:
            raise InputError("ids", f"shape {tuple(ids.shape)}", "a prompt is [B, T] with a token or more", "give one")
        if temperature < 0:
            raise InputError("temperature", f"{temperature}", "it is 0 or more", "0 for the likeliest tokens")
        caches = self.init_caches(ids.shape[0], ids.shape[1] + max_new_tokens)
        new = ids
        for _ in range(max_new_tokens):
            logits = self(new, caches)[:, -1].float()
            likeliest = logits.argmax(-1, keepdim=True)
            new = (logits / temperature).softmax(-1).multinomial(1) if temperature else likeliest
            ids = torch.cat([ids, new], 1)
        return ids


def _check_dims(dim: int, layers: Sequence[Layer]) -> None:
    for number, layer in enumerate(layers):
        if layer.dim != dim:
            rule = f"hidden states have {dim} channels"
            raise DeclarationError(f"layers[{number}]", f"dim = {layer.dim}", rule, f"{type(layer).__name__}({dim}, …)")
