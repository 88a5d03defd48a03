"""The selector for a few queries: scores once, in programs that share the candidates, then the best of each share.

The heads of a group are the rows of a tile, so a key is read once for all of them. Scores that rank as they are stay
inside their program, which leaves the best of its share. Where they become probabilities, logits of a step are written,
fp32, a number per head and summary, with every share's log-sum-exp; then the probabilities of groups, and those rank.
Of a choice within lists of larger units the children alone are scored and ranked (of shares of a softmax: ranked).
"""

from __future__ import annotations

from dataclasses import replace

from sparsec.lower.decode import merge as decode_merge
from sparsec.lower.decode import portion, rank, select_scores
from sparsec.lower.lowered import Lowered, Step
from sparsec.lower.select.frame import without_constants
from sparsec.plan.specs import Selector
from sparsec.tile.language import Tensor
from sparsec.tile.schedule import Schedule

RANKED = {True: 128, False: 16}
"""Candidates that join a list of the best at a time: many where a program's threads rank them at once, on a GPU."""
WEIGHED = 16
"""Programs at least that turn a unit's logits into probabilities."""
AHEAD = {True: 3, False: 1}
"""Stages of those: the logits of a turn are under way in the turn before, on a GPU."""


def fits(spec: Selector) -> str | None:
    """Why a spec keeps the forward's kernel; None where it has splits."""
    if spec.pool is not None and not spec.softmax:
        return "it pools scores that are no probabilities"
    if spec.head_weights is not None:
        return "an indexer weighs its heads"
    if spec.bias is not None or spec.cosine:
        return "its scores are cosines, or a bias follows them"
    return "weights are shares of all that is eligible" if spec.weights == "softmax_all" else None


def lower(spec: Selector, schedule: Schedule, sums: Tensor | None = None, whole: bool = True) -> Lowered:
    """The programs in launch order; ``sums`` are an attention's log-sum-exps, which has left its logits too.

    The lists of shares become one where the ``whole`` is asked for.
    """
    spec = without_constants(spec)
    found = portion.buffers(spec, schedule.splits)
    if sums is not None:
        found = replace(found, sums=sums)
    one = replace(schedule, rows=1, warps=1 if schedule.warps > 1 else schedule.warps, stages=1)
    merged = (Step(rank.merge(spec, one, found), one),) if whole else ()
    if not spec.softmax:
        return Lowered(
            (Step(select_scores.lower(spec, schedule), schedule), *merged), decode_merge.scratch([found.best])
        )
    ranked = replace(schedule, splits=found.lists, rows=1, block=RANKED[schedule.split_dims], stages=1)
    first = [Step(select_scores.lower(spec, schedule), schedule)] if sums is None else []
    weighed = replace(ranked, splits=max(found.lists, WEIGHED), stages=AHEAD[schedule.split_dims])
    rest = (Step(rank.masses(spec, weighed, found), weighed), Step(rank.best(spec, ranked, found), ranked))
    own = [found.raw, found.sums, found.masses, found.best]
    return Lowered((*first, *rest, *merged), decode_merge.scratch(own))
