"""A decode step as one CUDA graph: positions and lengths are the device's own, so it serves a cache that grows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from sparsec.ir.error import InputError
from sparsec.runtime.decode.cache_state import Cache
from sparsec.runtime.decode.declared import check_own

if TYPE_CHECKING:
    from torch import Tensor

    from sparsec.runtime.decode.decoder import Decoder
    from sparsec.runtime.decode.evicting import EvictingDecoder


class StepGraph:
    """Captured once; each call adds its tokens to the cache and gives the outputs, which the next call overwrites.

    Rows of chunks, where a variant has them, are part of every call: those of a chunk that is not complete are ignored.

    Attributes:
        tokens: the captured inputs, which may be written in place of giving them to a call.
        outputs: what a call gives.
    """

    def __init__(self, decoder: Decoder | EvictingDecoder, cache: Cache, tokens: Mapping[str, Tensor | None]) -> None:
        import torch

        check_own(decoder.declared, cache, Cache)
        self.cache = cache
        self.count = decoder.count(tokens)
        if any(not x.is_cuda for x in tokens.values() if x is not None):
            raise InputError("decode_graph", "tensors on the CPU", "graphs are CUDA's", "call decode")
        constant = decoder.constant
        self.tokens = {n: x if n in constant else x.clone() for n, x in tokens.items() if x is not None}
        before = cache.snapshot()
        decoder.captured(cache, self.tokens)  # builds and loads what the capture must find
        cache.restore(before)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self.outputs = decoder.captured(cache, self.tokens)
        cache.replayed(-self.count)  # nothing has run

    def __call__(self, **tokens: Tensor) -> list[Tensor]:
        """Add new tokens, those in ``tokens`` where none are given. Raises InputError where the cache is full."""
        for name, x in tokens.items():
            self.tokens[name].copy_(x)
        self.cache.reserve(self.count)
        self._graph.replay()
        self.cache.replayed(self.count)
        return self.outputs
