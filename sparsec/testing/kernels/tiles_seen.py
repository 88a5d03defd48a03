"""Block lists against the mask that they stand for: exactly the key tiles in which some query of a tile sees a key."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn.functional import pad

from sparsec.ir.node import Node
from sparsec.ir.op import Op
from sparsec.oracle.evaluate import Evaluation
from sparsec.oracle.values import Mask
from sparsec.plan.specs import BlockList


def tiles_agree(ev: Evaluation, attend: Node, spec: BlockList, buffers: Mapping[str, Tensor]) -> tuple[bool, str, None]:
    """Whether the written ids and counts name the seen tiles of every (batch, head, query tile), ascending."""
    keys = ev.dim(attend.src[1].shape[1])
    seen = seen_tiles(ev, attend, spec) if spec.given is None else named_tiles(spec, buffers, keys)
    ids, counts = buffers[spec.ids], buffers[spec.counts]
    listed = torch.zeros_like(seen)
    slot = torch.arange(ids.shape[-1], device=ids.device) < counts[..., None]
    padded = pad(listed, (0, 1)).scatter(-1, torch.where(slot, ids, seen.shape[-1]).long(), True)[..., :-1]
    right = bool((padded == seen).all()) and bool((counts == seen.sum(-1)).all())
    total = int(seen.sum())
    return right, f"{total} of {seen.numel()} tiles are listed" if right else "the list names other tiles", None


def named_tiles(spec: BlockList, buffers: Mapping[str, Tensor], keys: int) -> Tensor:
    """Tiles of so many keys that given lists name, bool ``[B, heads, query tiles, key tiles]``."""
    assert spec.given is not None
    lists = buffers[spec.given].transpose(1, 2)
    if spec.given_counts is not None:
        limit = buffers[spec.given_counts].transpose(1, 2)[..., None]
        lists = torch.where(torch.arange(spec.slots, device=lists.device) < limit, lists, -1)
    tiles = torch.arange(-(-keys // spec.block_k), device=lists.device)
    return (lists[..., None] == tiles).any(-2)


def seen_tiles(ev: Evaluation, attend: Node, spec: BlockList) -> Tensor:
    """Tiles with any visible pair, bool ``[B', H', query tiles, key tiles]``."""
    visible: Tensor | None = None
    heads = ev.dim(attend.src[0].shape[2])
    for selection in attend.positional[2:]:
        if selection.op is Op.MASK:
            mask = ev.whole(selection)
            assert isinstance(mask, Mask)
            one = mask.visible(heads)
            visible = one if visible is None else visible & one
    assert visible is not None, "a block list without a mask"
    b = visible if spec.per_batch else visible[:1]
    h = b if spec.heads > 1 else b[:, :, :1]
    rows, keys = -h.shape[1] % spec.block_q, -h.shape[3] % spec.block_k
    whole = pad(h, (0, keys, 0, 0, 0, rows))
    tiled: Tensor = whole.unflatten(3, (-1, spec.block_k)).unflatten(1, (-1, spec.block_q))
    return tiled.any(dim=5).any(dim=2).transpose(1, 2)
