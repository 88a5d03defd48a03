"""Admission: a candidate is used only after its results agree with the oracle, on buffers poisoned beforehand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from sparsec.autotune.cases import Case
from sparsec.autotune.jobs import reason
from sparsec.autotune.rows import SAMPLED, sampled_rows
from sparsec.autotune.trial import Rejection, Unfit
from sparsec.autotune.truth import Truth
from sparsec.autotune.verdict import differing_rows, unlike, wrong
from sparsec.plan.plan import Kernel
from sparsec.runtime.kernel import BuiltKernel

WORST_INT = 2**31 - 1
LOST = ("illegal memory access", "device-side assert", "unspecified launch failure", "misaligned address")


class Admission:
    """Judges candidates of one kernel on its cases.

    A reduced case is compared with the oracle row by row, the full one on sampled rows; there everything else must
    agree with the first kernel that was admitted, and rows whose lists differ from its lists are held to the oracle.
    """

    def __init__(self, kernel: Kernel, cases: Sequence[Case]) -> None:
        self.kernel, self.cases = kernel, cases
        self._truths: dict[tuple[int, int], Truth] = {}
        self._admitted: dict[str, Tensor] | None = None

    def judge(self, built: BuiltKernel) -> Rejection | None:
        """Why a built kernel may not be used; None if it is right.

        Raises Unfit where the device is lost, OracleError where the oracle cannot say what is right.
        """
        for position, case in enumerate(self.cases):
            try:
                written = self.run(built, case)
            except Exception as error:
                return failure(error)
            sentence = self._wrong(position, case, written)
            if sentence is not None:
                return Rejection("wrong result", f"at {case.size}: {sentence}")
        return None

    def run(self, built: BuiltKernel, case: Case) -> dict[str, Tensor]:
        """What a kernel writes into poisoned buffers of its own."""
        written = {name: poisoned(case.buffers[name]) for name in self.kernel.writes}
        launch, scratch = built.prepared({**case.buffers, **written}, case.dims)
        for x in scratch.values():
            poison(x, 0 if x.is_cuda else WORST_INT)
        launch()
        if any(x.is_cuda for x in written.values()):
            torch.cuda.synchronize()
        return written

    def _wrong(self, position: int, case: Case, written: dict[str, Tensor]) -> str | None:
        if not case.judged:
            return self._as_admitted(case, written)
        whole_rows = not case.whole or len(self.cases) == 1
        for number, (part, own) in enumerate(case.parts(self.kernel, written)):
            sentence = wrong(self._truth((position, number), part, whole_rows), own)
            if sentence is not None:
                return sentence
        if whole_rows:
            return None
        first = self._admitted is None
        sentence = self._as_admitted(case, written)
        return sentence if first or sentence else self._differing(case, written)

    def _truth(self, which: tuple[int, int], part: Case, whole_rows: bool) -> Truth:
        """What is right for a part of a case; worked out once."""
        if which not in self._truths:
            queries, device = part.lengths.query_count(part.dims), part.buffers[self.kernel.writes[0]].device
            rows = None if whole_rows else sampled_rows(queries, device)
            self._truths[which] = Truth(self.kernel, part.buffers, part.dims, rows)
        return self._truths[which]

    def _as_admitted(self, case: Case, written: dict[str, Tensor]) -> str | None:
        """Where results are not those of the first admitted kernel; the first one is kept."""
        if self._admitted is None:
            self._admitted = written
            return None
        found, right = (case.comparable(self.kernel, x) for x in (written, self._admitted))
        return unlike(self.kernel, found, right)

    def _differing(self, case: Case, written: Mapping[str, Tensor]) -> str | None:
        assert self._admitted is not None
        both = (case.parts(self.kernel, x) for x in (written, self._admitted))
        for (part, own), (_, admitted) in zip(*both, strict=True):
            rows = differing_rows(self.kernel, own, admitted, SAMPLED)
            sentence = wrong(Truth(self.kernel, part.buffers, part.dims, rows), own) if rows.numel() else None
            if sentence is not None:
                return sentence
        return None


def poisoned(like: Tensor) -> Tensor:
    """A buffer like another, full of NaN or of a number that no list holds."""
    return poison(torch.empty_like(like), WORST_INT)


def poison(x: Tensor, whole: int) -> Tensor:
    """Fill with NaN, ints with ``whole``; scratch on a GPU takes 0, since one read out of bounds ends the process."""
    return x.fill_(float("nan") if x.is_floating_point() else whole)


def failure(error: Exception) -> Rejection:
    """The rejection of a candidate that raised. Raises Unfit where no further kernel can run in this process."""
    text = str(error)
    if any(sign in text for sign in LOST):
        raise Unfit(Rejection("crash", reason(error)), True) from error
    if "out of resource" in text:
        return Rejection("shared memory" if "shared memory" in text else "registers", reason(error))
    illegal = type(error).__name__ in ("LaunchError", "ScheduleError", "TileError")
    return Rejection("illegal" if illegal else "crash", reason(error))
