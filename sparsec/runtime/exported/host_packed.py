"""What the file of a packed variant carries beside kernels and checks: the table of documents, from their ends."""

from __future__ import annotations

import torch
from torch import Tensor


def ends(name: str, cu: Tensor, device: str) -> Tensor:
    """The argument; raises ValueError unless it could hold 0 and then the ends of documents."""
    if not isinstance(cu, Tensor):
        raise ValueError(
            f"`{name}` is a {type(cu).__name__}: it must be an int32 tensor, 0 and then the documents' ends"
        )
    if cu.dtype != torch.int32 or cu.dim() != 1 or not cu.numel() or cu.device.type != device:
        found = f"`{name}` is {tuple(cu.shape)} {cu.dtype} on {cu.device}"
        raise ValueError(f"{found}: it must be int32 on {device}, 0 and then the documents' ends")
    return cu


def longest(name: str, cu: Tensor, rows: int, given: int | None) -> int:
    """The longest document: as given, else read on a CPU, else all rows. Raises ValueError for what are no ends."""
    if cu.is_cuda:
        return rows if given is None else given
    sizes = cu[1:] - cu[:-1]
    if int(cu[0]) != 0 or int(cu[-1]) != rows or bool((sizes < 0).any()):
        raise ValueError(f"`{name}` is {cu.tolist()}: it must begin with 0, never descend, and end at {rows}")
    found = int(sizes.max()) if sizes.numel() else 0
    if given is not None and given < found:
        raise ValueError(f"`{name}` has a document of {found} tokens, and the longest was said to have {given}")
    return found if given is None else given


def counted(name: str, count: Tensor, rows: int) -> Tensor:
    """How many rows of their own, such as chunks, documents have. ValueError on a CPU where an input has others."""
    if not count.is_cuda and int(count.sum()) != rows:
        raise ValueError(f"`{name}` has {rows} rows, and the documents have {count.tolist()}")
    return count


def documents(cu: Tensor, q_len: Tensor, cu_k: Tensor, k_len: Tensor, offset: Tensor, counts: list[Tensor]) -> Tensor:
    """A row per document: where its queries and keys begin, how many they are, its first position, further starts."""
    columns = [cu[:-1], q_len, cu_k[:-1], k_len, offset, *[c.cumsum(0) - c for c in counts]]
    return torch.stack([c.to(torch.int32) for c in columns], dim=1).contiguous()
