"""Which query rows stand for all where all are too many to compute exactly."""

from __future__ import annotations

import torch

SAMPLED = 64


def sampled_rows(queries: int, device: torch.device) -> torch.Tensor:
    """Some of so many query rows, for the check at full length: the first, the last, and some in between."""
    generator = torch.Generator().manual_seed(queries)
    between = torch.randint(0, queries, (SAMPLED - 16,), generator=generator)
    ends = torch.cat([torch.arange(8), torch.arange(queries - 8, queries)]).clamp(0, queries - 1)
    rows: torch.Tensor = torch.cat([between, ends]).unique()
    return rows.to(device)
