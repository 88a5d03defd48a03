"""Lists that a declaration gives, as block lists from both sides: who is named, and which tiles no mask cuts first."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from sparsec.lower.registry import lower_kernel
from sparsec.plan.specs import BlockList
from sparsec.scalar.expr import var
from sparsec.tile.schedule import Schedule

TQ, TK, ROWS, KEYS, SLOTS = 16 * 40 - 3, 16 * 20 + 5, 16, 32, 5
"""Forty query tiles, which are searched 32 at a time, and eleven key tiles; the last of both are cut off."""

CAUSAL = var("j") <= var("i")
QUERY_TILES, KEY_TILES = -(-TQ // ROWS), -(-TK // KEYS)


def made(run: Callable[..., None], spec: BlockList, given: torch.Tensor, counts: torch.Tensor) -> dict[str, list[int]]:
    """Per tile and list head what was written: the ids up to the count, and the number of whole ones before them."""
    own, others = (KEY_TILES, QUERY_TILES) if spec.transposed else (QUERY_TILES, SLOTS)
    x = {"given": given, "limit": counts, "ids": torch.full((1, 2, own, others), -7, dtype=torch.int32)}
    x |= {name: torch.full((1, 2, own), -7, dtype=torch.int32) for name in ("counts", "whole")}
    run(lower_kernel(spec, Schedule()), x, {"B": 1, "TQ": TQ, "TK": TK, "q_offset": TK - TQ})
    ids, found = x["ids"][0], x["counts"][0]
    return {
        "ids": [ids[h, n, : found[h, n]].tolist() for h in range(2) for n in range(own)],
        "whole": x["whole"][0].flatten().tolist(),
    }


def drawn() -> tuple[torch.Tensor, torch.Tensor]:
    """Lists without repeats, some of them short, with -1 in between."""
    g = torch.Generator().manual_seed(0)
    ids = torch.rand(1, QUERY_TILES, 2, KEY_TILES, generator=g).argsort(-1)[..., :SLOTS].int()
    ids[torch.rand(ids.shape, generator=g) < 0.2] = -1
    return ids.contiguous(), torch.randint(0, SLOTS + 1, (1, QUERY_TILES, 2), generator=g, dtype=torch.int32)


def wanted(spec: BlockList, given: torch.Tensor, counts: torch.Tensor) -> dict[str, list[int]]:
    """The same, one entry after another."""
    q = torch.arange(TQ)[:, None] + TK - TQ
    visible = torch.nn.functional.pad(torch.arange(TK) <= q, (0, KEY_TILES * KEYS - TK, 0, QUERY_TILES * ROWS - TQ))
    full = visible.unflatten(1, (-1, KEYS)).unflatten(0, (-1, ROWS)).all(3).all(1)
    if spec.transposed:  # the tile's own rows need not exist: nothing is stored for those that do not
        full[:, -1] = visible[:, (KEY_TILES - 1) * KEYS : TK].unflatten(0, (-1, ROWS)).all(2).all(1)
    else:
        full[-1] = visible[(QUERY_TILES - 1) * ROWS : TQ].unflatten(1, (-1, KEYS)).all(2).all(0)
    ids: list[list[int]] = []
    whole: list[int] = []
    for h in range(2):
        lists = [given[0, n, h, : counts[0, n, h]].tolist() for n in range(QUERY_TILES)]
        pairs = [(n, c) for n in range(QUERY_TILES) for c in lists[n] if c >= 0]
        for own in range(KEY_TILES if spec.transposed else QUERY_TILES):
            mine = [(n, c) for n, c in pairs if (c if spec.transposed else n) == own]
            first = [p for p in mine if spec.whole and full[p]]
            rest = [p for p in mine if p not in first]
            ids.append([p[0] if spec.transposed else p[1] for p in (*first, *rest)])
            whole.append(len(first) if spec.whole else -7)
    return {"ids": ids, "whole": whole}  # type: ignore[dict-item]


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("whole", [None, "whole"])
def test_named_tiles_in_order(run: Callable[..., None], transposed: bool, whole: str | None) -> None:
    where = CAUSAL if whole else None
    spec = BlockList(
        "lists", where, (), "ids", "counts", "TK", ROWS, KEYS, True, 2, transposed, "given", "limit", SLOTS, whole
    )
    given, counts = drawn()
    found, want = made(run, spec, given, counts), wanted(spec, given, counts)
    assert found == want
    assert whole is None or 0 < sum(want["whole"]) < sum(map(len, want["ids"]))  # type: ignore[arg-type]
