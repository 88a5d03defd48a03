"""Plain fp64 truth of every case, row by row from dense scores, for all rows or for sampled tiles of 64 rows.

Independent of sparsec and of the peers. A row whose selection hangs on a near tie is reported as undecided: fp32 and
fp64 may then choose differently, and both are right.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sparsec.benchmarks.attention_fp64 import best, keys_of, members_of, softmax_over
from sparsec.benchmarks.cases import Case, FullCase, HsaCase, Inputs, MobaCase, SelectedCase, WindowCase
from sparsec.benchmarks.cases_lola import LolaCase
from sparsec.benchmarks.cases_nsa import NsaCase, SelectorCase
from sparsec.benchmarks.cases_rsa import RsaCase
from sparsec.benchmarks.cases_scan import ScanCase
from sparsec.benchmarks.cases_sections import SectionsCase
from sparsec.benchmarks.cases_sse import SseCase
from sparsec.benchmarks.reference_lola import lola_output
from sparsec.benchmarks.reference_nsa import nsa_lists, nsa_output
from sparsec.benchmarks.reference_rsa import rsa_output
from sparsec.benchmarks.reference_scan import scan_output
from sparsec.benchmarks.reference_sse import sse_output

TILE = 64


@dataclass(frozen=True, slots=True)
class Truth:
    """Outputs [B, R, H, D] of the rows (of a selector alone, bools [B, R, H, blocks]), and how decided each is.

    Attributes:
        gap: [B, R, H], between the last chosen score and the next, relative to the best; infinite without a choice.
    """

    rows: Tensor
    output: Tensor
    gap: Tensor

    def decided(self, tie: float) -> Tensor:
        """Which rows of which heads [B, R, H] no near tie leaves open."""
        return self.gap >= tie


def sampled_rows(case: Case, tiles: int = 5) -> Tensor:
    """Rows of `tiles` whole tiles spread from the first to the last."""
    count = math.ceil(case.T / TILE)
    starts = torch.linspace(0, count - 1, min(tiles, count)).round().long() * TILE
    rows = (starts[:, None] + torch.arange(TILE)).flatten()
    return rows[rows < case.T].to(case.device)


def truth(case: Case, inputs: Inputs, rows: Tensor) -> Truth:
    """The case's output at these rows, in fp64."""
    if isinstance(case, ScanCase | SseCase | RsaCase):
        x = {name: x.double() for name, x in inputs.items()}
        output = _states(case, x)[:, rows]
        return Truth(rows, output, torch.full(output.shape[:-1], math.inf, device=output.device))
    parts = [_batch(case, {name: x[b] for name, x in inputs.items()}, rows) for b in range(case.B)]
    return Truth(rows, torch.stack([o for o, _ in parts]), torch.stack([g for _, g in parts]))


def _states(case: ScanCase | SseCase | RsaCase, x: Inputs) -> Tensor:
    if isinstance(case, ScanCase):
        return scan_output(case, x)
    return sse_output(case, x) if isinstance(case, SseCase) else rsa_output(case, x)


def _batch(case: Case, inputs: Inputs, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Output and gaps of one batch entry, head by head so that dense scores stay small."""
    if isinstance(case, LolaCase):
        return lola_output(case, inputs, rows)
    step = case.group if isinstance(case, SelectorCase) else 1
    heads = [head_output(case, head_inputs(case, inputs, h), rows) for h in range(0, case.H, step)]
    return torch.stack([o for o, _ in heads], 1), torch.stack([g for _, g in heads], 1)


def head_inputs(case: Case, inputs: Inputs, h: int) -> Inputs:
    """One query head's slices of one batch entry's inputs; `group` has the queries of all heads of its group."""
    own = {name: of_head(case, name, x, h) for name, x in inputs.items()}
    first = h // case.group * case.group
    return own | {"group": inputs["q"][:, first : first + case.group]}


def of_head(case: Case, name: str, tensor: Tensor, h: int) -> Tensor:
    """One head's slice in fp64, or int64."""
    picked = tensor[:, h if name in case.per_query_head else h // case.group]
    return picked.double() if picked.is_floating_point() else picked.long()


def head_output(case: Case, x: Inputs, rows: Tensor) -> tuple[Tensor, Tensor]:
    """One head's output at some rows in fp64, and how decided its choices are."""
    if isinstance(case, SelectorCase):
        return nsa_lists(case, x, rows)
    scores = x["q"][rows] @ x["k"].T / math.sqrt(case.D)
    gap = torch.full_like(rows, math.inf, dtype=torch.float64)
    i, j = keys_of(case, rows)
    match case:
        case FullCase():
            return softmax_over(scores, j <= i) @ x["v"], gap
        case WindowCase():
            seen = (j <= i) & ((i - j < case.window) | (j < case.memory))
            return softmax_over(scores, seen) @ x["v"], gap
        case SelectedCase():
            listed = members_of(x["indices"][rows // case.queries], math.ceil(case.T / case.block))
            return softmax_over(scores, (j <= i) & listed[:, (j // case.block)[0]]) @ x["v"], gap
        case MobaCase():
            allowed, gap = _moba(case, x, rows)
            return softmax_over(scores, allowed) @ x["v"], gap
        case HsaCase():
            return _hsa(case, x, scores, rows)
        case NsaCase():
            return nsa_output(case, x, scores, rows)
        case _:
            raise TypeError(f"no reference for {type(case).__name__}")


def _moba(case: MobaCase, x: Inputs, rows: Tensor) -> tuple[Tensor, Tensor]:
    i, j = keys_of(case, rows)
    means = torch.stack([block.mean(0) for block in torch.split(x["k"], case.block)])
    own = torch.nn.functional.one_hot(rows // case.block, len(means)).bool()
    past = torch.arange(len(means), device=rows.device) < (rows // case.block)[:, None]
    gates = (x["q"][rows] @ means.T).masked_fill(~past, -math.inf)
    chosen, gap = best(gates, case.k - 1)
    return (j <= i) & (chosen | own)[:, (j // case.block)[0]], gap


def _hsa(case: HsaCase, x: Inputs, scores: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Softmax inside each chosen chunk, chunks summed with stick-breaking weights, newest first."""
    chunks = case.T // case.chunk
    ends = (torch.arange(chunks, device=rows.device) + 1) * case.chunk
    routed = x["r"][rows] @ x["l"].T / math.sqrt(case.retrieval)
    open_, above = ends <= rows[:, None], torch.full_like(rows, math.inf, dtype=torch.float64)
    if isinstance(case, SectionsCase):
        near, above = _sections(case, x, rows)
        open_ = open_ & near[:, :chunks]
    chosen, gap = best(routed.detach().masked_fill(~open_, -math.inf), case.k)
    kept = torch.where(chosen, routed.sigmoid(), 0.0)
    left = (1 - kept).flip(1).cumprod(1)
    newer = torch.cat([torch.ones_like(left[:, :1]), left[:, :-1]], 1).flip(1)
    inside = torch.unflatten(scores[:, : chunks * case.chunk], 1, (chunks, case.chunk)).softmax(-1)
    return ((kept * newer)[..., None] * inside).flatten(1) @ x["v"][: chunks * case.chunk], torch.minimum(gap, above)


def _sections(case: SectionsCase, x: Inputs, rows: Tensor) -> tuple[Tensor, Tensor]:
    """The chunks of the own section and of the best others, bool [R, chunks] and a few more."""
    own = rows[:, None] // (case.chunk * case.fanout)
    number = torch.arange(len(x["ls"]), device=rows.device)
    scores = (x["r"][rows] @ x["ls"].T / math.sqrt(case.retrieval)).detach()
    chosen, gap = best(scores.masked_fill(number >= own, -math.inf), case.sections)
    return (chosen | (number == own)).repeat_interleave(case.fanout, 1), gap
