"""The decoding half of a compiled variant's face: ``init_cache`` and ``decode``."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

from sparsec.runtime.bind import refuse_nameless

if TYPE_CHECKING:
    from torch import Tensor

    from sparsec.runtime.compiled import Compiled
    from sparsec.runtime.decode.cache_state import Cache
    from sparsec.runtime.decode.decoder import Decoder
    from sparsec.runtime.decode.graph import StepGraph


class Decoding:
    """What a ``Compiled`` does one step at a time."""

    @cached_property
    def decoder(self) -> Decoder:
        """The variant's decode step. Raises DeclarationError where it has none."""
        from sparsec.runtime.decode.decoder import Decoder
        from sparsec.runtime.decode.evict_step import evicts
        from sparsec.runtime.decode.evicting import EvictingDecoder

        compiled = cast("Compiled", self)
        return cast("Decoder", EvictingDecoder(compiled)) if evicts(compiled.graph) else Decoder(compiled)

    def init_cache(self, batch: int, max_length: int | None = None, **options: Any) -> Cache:
        """An empty decode cache for sequences of up to ``max_length`` tokens; see ``Decoder.new`` for the options.

        Where only states are kept, there is no limit to a length, and none need be given.
        Raises DeclarationError where the variant has no decode step, with what reads the future.
        """
        return self.decoder.new(batch, max_length, **options)

    def decode(self, cache: Cache, *nameless: Tensor, **tokens: Tensor | None) -> Tensor | tuple[Tensor, ...]:
        """The outputs of the next tokens of every sequence, whose keys and values join the cache.

        Inputs are those of a call, with rows for the new tokens only; what has a row per chunk is given the rows of
        the chunks that these tokens complete. Outputs have no gradients, whatever inputs require: a call has them.
        Raises InputError where something does not fit, and for a cache of another declaration.
        """
        if nameless:
            refuse_nameless(cast("Compiled", self).variant, nameless, tokens)
        outputs = self.decoder(cache, tokens)
        return outputs[0] if len(outputs) == 1 else tuple(outputs)

    def decode_graph(self, cache: Cache, **tokens: Tensor | None) -> StepGraph:
        """A CUDA graph of a step with tokens of these shapes, for every length of the cache; see ``StepGraph``."""
        from sparsec.runtime.decode.graph import StepGraph

        return StepGraph(self.decoder, cache, tokens)
