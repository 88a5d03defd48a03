"""Training signals, and the ops that have no meaning yet: each says so in a sentence."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sparsec.ir.node import Node
from sparsec.oracle.values import Chosen, OracleError, Value

if TYPE_CHECKING:
    from sparsec.oracle.evaluate import Evaluation


def balance(probability: Tensor, ids: Tensor) -> Tensor:
    """N/K · Σ_n mean(e_n) · mean(n is chosen): e ``[…,N]``, ids ``[…,K]`` -> 0-dim. SSE, arXiv 2507.16577."""
    count = probability.shape[-1]
    chosen = (ids[..., None] == torch.arange(count, device=ids.device)).any(-2).to(probability.dtype)
    return count / ids.shape[-1] * (probability.reshape(-1, count).mean(0) * chosen.reshape(-1, count).mean(0)).sum()


def aux(ev: Evaluation, node: Node) -> Tensor:
    """A scalar: the load balance of a selection."""
    if node.word("fn") != "balance":
        raise OracleError(f"aux fn = {node['fn']}: the oracle has no meaning for it yet; use balance or kl")
    chosen, coefficient = ev.whole(node.src[1]), node["coefficient"]
    assert isinstance(chosen, Chosen) and isinstance(coefficient, float | int)
    return coefficient * balance(torch.softmax(ev.tensor(node.src[0]), dim=-1), chosen.ids)


def transfer(ev: Evaluation, node: Node) -> Value:
    """Refused: what one memory hands to another depends on the order of chunks, which no preset needs yet."""
    raise OracleError(f"transfer trigger = {node['trigger']}: the oracle has no meaning for it yet")
