"""A step of several layers is all or nothing: what one of them refuses, none of them has seen.

Layers whose dtypes and devices are those of the last step take what they took then. Before a step of others, the first
one among them, every cache is copied: of an empty one that is nothing, and states are of a fixed size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from sparsec.nn.layer_cache import LayerCache


def manner(model: nn.Module, ids: Tensor) -> object:
    """What decides by which dtypes and where layers compute."""
    kind = ids.device.type
    rounded = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
    return ids.device, rounded, *_weights(model, [])


def _weights(part: nn.Module, found: list[object]) -> list[object]:
    """Where and of what dtypes they are; without the names that ``parameters`` makes, in a third of its time."""
    found += [(p.dtype, p.device) for p in part._parameters.values() if p is not None]
    for inner in part._modules.values():
        if inner is not None:
            _weights(inner, found)
    return found


@contextmanager
def all_or_nothing(caches: Sequence[LayerCache], how: object) -> Iterator[None]:
    """Put caches back as they were where a step in another manner than the last one fails."""
    if all(cache.manner == how for cache in caches):
        yield
        return
    before = [cache.snapshot() for cache in caches]
    try:
        yield
    except Exception:
        for cache, held in zip(caches, before, strict=True):
            cache.restore(held)
        raise
    for cache in caches:
        cache.manner = how
