"""Random inputs: tensors, block choices, and how much neighbouring tokens agree in what they choose."""

import math

import torch

Generator = torch.Generator


def normal(shape: tuple[int, ...], dtype: torch.dtype, generator: Generator) -> torch.Tensor:
    """Standard normal, drawn on the generator's device."""
    return torch.randn(shape, device=generator.device, dtype=dtype, generator=generator)


def smooth_normal(shape: tuple[int, ...], span: int, dtype: torch.dtype, generator: Generator) -> torch.Tensor:
    """Standard normal whose tokens (axis 1) share span - 1 of span draws with their neighbour; span 1 shares none."""
    if span == 1:
        return normal(shape, dtype, generator)
    batch, tokens, *rest = shape
    drawn = torch.randn((batch, tokens + span, *rest), device=generator.device, generator=generator)
    sums = drawn.cumsum(1, dtype=torch.float64)
    return ((sums[:, span:] - sums[:, :-span]) / math.sqrt(span)).to(dtype)


def causal_block_choice(
    shape: tuple[int, int, int], chosen: int, block: int, keep: float, generator: Generator, own: bool = True
) -> torch.Tensor:
    """Started blocks per token and key/value head, ascending, int32 [B, T, HKV, chosen], -1 where too few exist.

    keep = 0 draws every token's blocks afresh: the worst case, in which neighbours share nothing. Otherwise a block's
    score changes at a token with probability 1 - keep, so that neighbours share most blocks, as trained models do.
    Without `own` the block that a token lies in is left out.
    """
    batch, tokens, heads = shape
    blocks = math.ceil(tokens / block)
    device = generator.device
    scores = torch.rand(batch, tokens, heads, blocks, device=device, generator=generator)
    if keep:
        fresh = torch.rand(scores.shape, device=device, generator=generator) >= keep
        fresh[:, 0] = True
        position = torch.arange(tokens, device=device)[None, :, None, None]
        scores = scores.gather(1, torch.where(fresh, position, 0).cummax(1).values)
    last = torch.arange(tokens, device=device) // block - (0 if own else 1)
    started = torch.arange(blocks, device=device) <= last[:, None]
    best, index = scores.masked_fill(~started[None, :, None, :], -1).topk(min(chosen, blocks), -1)
    index = torch.nn.functional.pad(index.masked_fill(best < 0, -1), (chosen - index.shape[-1], 0), value=-1)
    return index.sort(-1).values.int().contiguous()
