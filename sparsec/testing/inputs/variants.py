"""Every design that runs forward from generated kernels, with knobs small enough for the tile interpreter."""

from __future__ import annotations

from sparsec.frontends.preset import preset
from sparsec.frontends.text import parse
from sparsec.ir.variant import Variant
from sparsec.testing.inputs.declared import DECLARED, FORWARD

CHUNK = 16

_NSA: dict[str, object] = {"block": CHUNK, "k": 4, "size": 8, "stride": 4, "window": 24}
_HSA: dict[str, object] = {"chunk": CHUNK, "k": 3}
_MSA: dict[str, object] = {"window": 24, "slots": 5, "block": CHUNK}
_INFLLM: dict[str, object] = {"block": CHUNK, "size": 8, "stride": 4, "window": CHUNK}

SMALL: dict[str, tuple[str, dict[str, object]]] = {
    "full": ("full", {}),
    "full-everywhere": ("full", {"causal": False}),
    "full-softcap-sink": ("full", {"softcap": 5.0, "sink": "given"}),
    "streaming": ("streaming", {"window": 24, "sinks": 3}),
    "fox": ("fox", {}),
    "fox-window": ("fox", {"window": 24, "gates": "log"}),
    "msa-window": ("msa", {**_MSA, "pattern": "window", "sinks": 2}),
    "msa-dilated-carried": ("msa", {**_MSA, "pattern": "dilated", "window": 9, "slot_origin": "carried"}),
    "msa-strided-gated": ("msa", {**_MSA, "pattern": "strided", "stride": 7, "slot_softmax": "gated"}),
    "msa-log": ("msa", {**_MSA, "pattern": "log_sparse"}),
    "msa-log-window-gated": ("msa", {**_MSA, "pattern": "log_sparse+window", "window": 5, "slot_softmax": "gated"}),
    "msa-global-window": ("msa", {**_MSA, "pattern": "global+window", "global_tokens": 6, "slots": 0}),
    "msa-random": ("msa", {**_MSA, "pattern": "random+window", "random_blocks": 1}),
    "msa-random-alone": ("msa", {**_MSA, "pattern": "random", "slots": 0, "gates": "given"}),
    "longformer": ("longformer", {"window": 20, "global_tokens": 3}),
    "longformer-dilated": ("longformer", {"window": 9, "dilation": 3, "dilated_heads": 1, "causal": False}),
    "bigbird": ("bigbird", {"block": CHUNK, "global_blocks": 1, "random_blocks": 1}),
    "bigbird-everywhere": ("bigbird", {"block": CHUNK, "global_blocks": 1, "random_blocks": 1, "causal": False}),
    "hsa": ("hsa", _HSA),
    "hsa-softmax-sink": ("hsa", {**_HSA, "weights": "softmax", "sink": "zero"}),
    "hsa-mean": ("hsa", {**_HSA, "landmark": "mean", "retrieval": "group_mean"}),
    "hsa-window": ("hsa", {**_HSA, "landmark": "mean", "window": 24, "outside_window": True}),
    "hsa-window-sum": ("hsa", {**_HSA, "retrieval": "group_mean", "window": 24, "merge": "sum", "sink": "zero"}),
    "nsa": ("nsa", _NSA),
    "nsa-separate-literal": ("nsa", {**_NSA, "kv": "separate", "importance": "paper_literal", "gates": "given"}),
    "nsa-given": ("nsa", {**_NSA, "selection": "given"}),
    "nsa-selected": ("nsa", {**_NSA, "branches": "slc"}),
    "nsa-shared-lists": ("nsa", {**_NSA, "selection": "given", "branches": "slc", "query_block": CHUNK}),
    "moba": ("moba", {"block": CHUNK, "k": 3}),
    "dsa": ("dsa", {"k": 11}),
    "dsa-kl": ("dsa", {"k": 11, "training": "kl"}),
    "dsa-warm": ("dsa", {"training": "warm_up"}),
    "minimax": ("minimax", {"block": CHUNK, "k": 3}),
    "minimax-kl": ("minimax", {"block": 32, "k": 2, "training": "kl"}),
    "evermind": ("evermind", {"document": 8, "pool": 4, "k": 2}),
    "evermind-dot": ("evermind", {"document": 4, "pool": 4, "k": 3, "score": "dot", "heads": "max"}),
    "infllm2": ("infllm2", {**_INFLLM, "k": 5}),
    "infllm2-free": ("infllm2", {**_INFLLM, "k": 2, "count_forced": False}),
}
"""Name -> preset and knobs. Chunks, blocks and windows are such that lengths around 16 and 67 reach every path."""

NAMES = (*SMALL, *DECLARED)
"""All small variants that can be differentiated."""

EVERY = (*NAMES, *FORWARD)
"""All small variants."""


def small(name: str) -> Variant:
    """A small variant by name: a preset of ``SMALL``, or one that is declared."""
    if name in DECLARED or name in FORWARD:
        return parse({**DECLARED, **FORWARD}[name])
    design, knobs = SMALL[name]
    return preset(design, **knobs)
