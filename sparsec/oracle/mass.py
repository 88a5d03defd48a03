"""How much of the dense attention a variant keeps: the share of softmax mass on the keys that it reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sparsec.ir.node import Node
from sparsec.ir.op import Op
from sparsec.ir.variant import Variant
from sparsec.oracle.attends import admitted, logits, read
from sparsec.oracle.evaluate import Evaluation
from sparsec.oracle.truth import Inputs, evaluation
from sparsec.oracle.values import OracleError


@dataclass(frozen=True, slots=True)
class Mass:
    """The share of the dense attention mass that was kept, over queries and heads.

    Attributes:
        mean: over all queries, heads and batch entries.
        p5: the 5th percentile over the same.
        worst_head: the head with the least mean, and that mean.
    """

    mean: float
    p5: float
    worst_head: tuple[int, float]

    def __str__(self) -> str:
        head, least = self.worst_head
        return f"kept {self.mean:.1%} of the dense mass (5th percentile {self.p5:.1%}, head {head} {least:.1%})"


def kept_mass(variant: Variant, inputs: Inputs, *, causal: bool = True, q_offset: int | None = None) -> Mass:
    """The mass of dense attention on the tokens that any attend of the variant reads, given inputs by name.

    Dense attention is the softmax of the variant's own logits over all tokens up to the query's (over all, if not
    causal). Summaries and slots do not count. Raises OracleError where no attend reads tokens.
    """
    nodes = [node for node in variant.nodes if node.op is Op.ATTEND and node.src[1].op is Op.TOKENS]
    if not nodes:
        raise OracleError(f"{variant.name} has no attend over tokens, so it keeps no share of their attention")
    with torch.no_grad():
        share = _shares(evaluation(variant, inputs, "vector", q_offset), nodes, causal)
    heads = share.mean(dim=(0, 1))
    worst = int(heads.argmin())
    return Mass(float(share.mean()), float(_percentile(share.flatten(), 0.05)), (worst, float(heads[worst])))


def _shares(ev: Evaluation, nodes: Sequence[Node], causal: bool) -> Tensor:
    """The share kept per query and head ``[B,TQ,H]``, attends over the same number of keys taken together."""
    keys = read(ev, nodes[0])[0]
    together = [node for node in nodes if read(ev, node)[0].shape == keys.shape]
    index = torch.arange(ev.row_count(nodes[0]), device=ev.device)
    return torch.cat([_kept(ev, together, keys, causal) for _ in ev.blocks(index)], dim=1)


def _kept(ev: Evaluation, nodes: Sequence[Node], keys: Tensor, causal: bool) -> Tensor:
    score = logits(ev, nodes[0], ev.rows(nodes[0].src[0]), keys)
    seen = torch.stack([admitted(ev, node, keys.shape[1])[0] for node in nodes]).any(0)
    everything = torch.ones_like(seen)
    if causal:
        everything = everything & (torch.arange(keys.shape[1], device=ev.device) <= ev.positions[:, None, None])
    dense = ev.form.softmax(score, everything & (score != -torch.inf))
    return torch.where(seen, dense, 0.0).sum(-1)


def _percentile(values: Tensor, share: float) -> Tensor:
    """The value below which a share of the others lies; sorting has no limit of size, unlike quantile."""
    return values.sort().values[int(share * (values.numel() - 1))]
