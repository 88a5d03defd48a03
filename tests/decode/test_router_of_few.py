"""A router of a few tokens: in one go where registers hold all it reads, else block by block."""

from __future__ import annotations

import pytest
import torch

from sparsec.lower.route import router
from sparsec.plan.states.route_specs import Router
from sparsec.tile.build import reachable
from sparsec.tile.interpreter import interpret
from sparsec.tile.language import TileOp


@pytest.mark.parametrize(("parts", "dim", "loops"), [(4, 1100, 0), (32, 2048, 0), (3, 40, 0), (64, 2048, 1)])
def test_scores_and_the_best(parts: int, dim: int, loops: int) -> None:
    spec = Router("r", "x", "w", "ids", "shares", "weights", parts, dim, 2, 0.5, "bfloat16", "bfloat16")
    schedule = router.few(spec, router.default(spec, "triton:sm_90"), "triton:sm_90")
    program = router.lower(spec, schedule)
    assert sum(node.op is TileOp.LOOP for node in reachable(program.effects)) == loops
    x, w = (torch.randn(*shape, 1, dim).bfloat16() for shape in ((2, 3), (parts,)))
    shares, ids, weights = (
        torch.empty(2, 3, 1, parts),
        torch.empty(2, 3, 1, 2, dtype=torch.int32),
        torch.empty(2, 3, 1, 2),
    )
    named = {"x": x, "w": w, "shares": shares, "ids": ids, "weights": weights}
    interpret(program, named, {"B": 2, "TQ": 3, "TK": 3, "N": 3, "q_offset": 0})
    scores = 0.5 * torch.einsum("bnid,pid->bnip", x.double(), w.double())
    best = scores.softmax(-1).topk(2)
    assert torch.allclose(shares.double(), scores.softmax(-1), atol=1e-5)
    assert torch.equal(ids.long(), best.indices) and torch.allclose(weights.double(), best.values, atol=1e-5)
