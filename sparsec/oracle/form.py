"""The two forms of the oracle: which functions a row operation is computed by."""

from __future__ import annotations

from typing import Literal, Protocol

from torch import Tensor

from sparsec.oracle import loop, vector
from sparsec.oracle.selection import Choice, Reduction
from sparsec.oracle.weights import WeightFn

FormName = Literal["loop", "vector"]


class Form(Protocol):
    """The row operations; shapes and meanings are those of `sparsec.oracle.loop`."""

    def dot(self, q: Tensor, keys: Tensor) -> Tensor: ...
    def cosine(self, q: Tensor, keys: Tensor) -> Tensor: ...
    def indexer(self, q: Tensor, keys: Tensor, head_weights: Tensor) -> Tensor: ...
    def attend(self, score: Tensor, v: Tensor, visible: Tensor, sink: Tensor | None) -> tuple[Tensor, Tensor]: ...
    def attend_chunks(
        self,
        score: Tensor,
        v: Tensor,
        visible: Tensor,
        chunks: Tensor,
        chunk_weights: Tensor,
        size: int,
        sink: Tensor | None,
    ) -> Tensor: ...
    def members(self, chunks: Tensor, size: int, keys: int, heads: int) -> Tensor: ...
    def softmax(self, score: Tensor, visible: Tensor) -> Tensor: ...
    def reduce_heads(self, score: Tensor, sharers: int, op: Reduction) -> Tensor: ...
    def overlap(self, score: Tensor, blocks: int, size: int, stride: int, block: int, literal: bool) -> Tensor: ...
    def pool(self, score: Tensor, blocks: int, kernel: int, stride: int, padding: int, op: Reduction) -> Tensor: ...
    def choose(self, score: Tensor, eligible: Tensor, forced: Tensor, choice: Choice) -> Tensor: ...
    def weigh(self, score: Tensor, ids: Tensor, fn: WeightFn) -> Tensor: ...


FORMS: dict[FormName, Form] = {"loop": loop, "vector": vector}
