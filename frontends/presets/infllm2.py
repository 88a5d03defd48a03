"""InfLLM-v2: blocks chosen without parameters, by pooled probabilities of overlapping mean keys."""

from __future__ import annotations

from sparsec.frontends.activations import keys_values, queries
from sparsec.ir import build as lang
from sparsec.ir.error import DeclarationError
from sparsec.ir.node import Node


def infllm2(
    *,
    block: int = 64,
    k: int = 64,
    size: int = 32,
    stride: int = 16,
    init_blocks: int = 1,
    window: int = 2048,
    count_forced: bool = True,
) -> Node:
    """Top-k blocks per key/value head, the first and the local ones forced (InfLLM-v2, arXiv 2509.24663).

    Below some length (8192 in the paper's models) the same weights run dense: use the preset full there.

    Knobs:
        block: tokens per block.
        k: blocks per query and key/value head.
        size: tokens per semantic kernel, a mean of keys.
        stride: tokens from one kernel to the next.
        init_blocks: blocks at the start that every query reads.
        window: tokens before the query's block that it reads, in whole blocks; its own block comes on top.
        count_forced: whether the forced blocks count in k, or come on top of it.
    """
    local = window // block
    forced = init_blocks + local + 1
    if count_forced and k < forced:
        rule = f"k counts the {forced} forced blocks ({init_blocks} first, {local} local, its own)"
        raise DeclarationError("preset infllm2", f"k = {k}", rule, f"k = {forced} or more, or count_forced = false")
    if block % stride:
        rule = "a block must be divisible by the stride of its kernels"
        raise DeclarationError("preset infllm2", f"block = {block}, stride = {stride}", rule, f"block = {4 * stride}")
    q, memory = queries(), keys_values(chunk=block)
    scores = lang.score(q, lang.summary(memory, size=size, stride=stride), detach=True)
    shares = lang.reduce(scores, over="group", pre="softmax", visible=f"c * {stride} + {size - 1} <= i")
    ratio = block // stride
    worth = lang.reduce(shares, over="blocks", op="max", kernel=ratio + 1, stride=ratio, padding=1)
    must = f"(c < {init_blocks}) | (c >= i // {block} - {local})"
    slots = None if count_forced else k + forced
    chosen = lang.topk(
        worth, k=k, slots=slots, size=block, eligible="started", forced=must, count_forced=count_forced, order="oldest"
    )
    return lang.attend(q, memory, chosen, lang.mask(memory, where="causal"))
