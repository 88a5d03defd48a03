"""Generic memory sparse attention: a sparsity pattern beside persistent memory slots."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from sparsec.frontends import patterns
from sparsec.frontends.activations import Gates, gate, keys_values, queries
from sparsec.ir import build as lang
from sparsec.ir.error import DeclarationError
from sparsec.ir.node import Node
from sparsec.ir.suggest import did_you_mean
from sparsec.scalar.expr import Expr


def msa(
    *,
    pattern: str = "window",
    window: int = 512,
    sinks: int = 0,
    dilation: int = 2,
    stride: int = 64,
    global_tokens: int = 16,
    block: int = 64,
    random_blocks: int = 3,
    seed: int = 0,
    slots: int = 64,
    slot_origin: Literal["learned", "carried"] = "learned",
    slot_softmax: Literal["shared", "gated"] = "shared",
    gates: Gates = "sigmoid",
) -> Node:
    """A causal pattern of tokens and m memory slots that every query sees (arXiv 1907.01470, 1904.10509, 2004.05150).

    Knobs:
        pattern: window, dilated, strided, log_sparse, global or random, or a union such as window+random.
        window: tokens a query sees under window and dilated, its own among them.
        sinks: tokens at the start that every query sees besides.
        dilation: the step of dilated, in tokens.
        stride: the step of strided, in tokens.
        global_tokens: the tokens at the start that global makes visible to all.
        block: tokens per block of random.
        random_blocks: earlier blocks that random draws per query block and head.
        seed: of the draws of random.
        slots: memory vectors; 0 for none.
        slot_origin: learned ``[slots,HKV,D]``, or carried ``[B,slots,HKV,D]`` from segment to segment.
        slot_softmax: shared with the tokens (one normaliser), or gated: a softmax and a gate of its own.
        gates: sigmoid of the inputs g_tokens and g_slots, or the inputs as given.
    """
    choices: dict[str, Callable[[], Expr]] = {
        "window": lambda: patterns.window(window),
        "dilated": lambda: patterns.dilated(window, dilation),
        "strided": lambda: patterns.strided(stride),
        "log_sparse": patterns.log_sparse,
        "global": lambda: patterns.first(global_tokens),
        "random": lambda: patterns.random_earlier(block, random_blocks, seed),
    }
    for word in pattern.split("+"):
        if word not in choices:
            fix = did_you_mean(word, choices)
            raise DeclarationError("preset msa", f"pattern = {pattern}", f"`{word}` is no pattern", fix)
    q, memory = queries(), keys_values()
    union = patterns.any_of([choices[word]() for word in pattern.split("+")])
    near = lang.attend(q, memory, lang.mask(memory, where=patterns.first(sinks) | union))
    if not slots:
        return near
    shape = f"{slots} HKV" if slot_origin == "learned" else f"B {slots} HKV"
    keys, values = lang.input("k_slots", f"{shape} D"), lang.input("v_slots", f"{shape} DV")
    kept = lang.attend(q, lang.slots(keys, values, origin=slot_origin))
    if slot_softmax == "shared":
        return lang.merge(near, kept, fn="lse")
    return lang.merge(near, kept, gates=(gate("tokens", gates), gate("slots", gates)), fn="gated")
