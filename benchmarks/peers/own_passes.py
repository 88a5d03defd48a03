"""sparsec's own plain recurrences, as what states of several parts or levels are compared with."""

from sparsec.benchmarks.cases import Case
from sparsec.benchmarks.cases_rsa import RsaCase
from sparsec.benchmarks.cases_scan import GdnCase, GlaCase, LevelsCase, ScanCase
from sparsec.benchmarks.cases_sse import SseCase
from sparsec.benchmarks.peers.form import Form


def forms(case: SseCase | RsaCase | LevelsCase) -> list[Form]:
    """One form: as many plain passes as a token reads states; of levels on a schedule one pass, their base."""
    if isinstance(case, RsaCase):
        return [_passes(case, "gdn", GdnCase, len(case.parts))]
    if isinstance(case, SseCase):
        return [_passes(case, "gdn", GdnCase, 2) if case.delta else _passes(case, "gla", GlaCase, 2)]
    return [_passes(case, "gdn", GdnCase, 1) if case.delta else _passes(case, "simple_gla", ScanCase, 1)]


def _passes(case: Case, name: str, kind: type[ScanCase], times: int) -> Form:
    plain = kind(
        f"{case.name}_{name}", case.B, case.H, case.HKV, case.T, case.D,
        device=case.device, dtype=case.dtype, train=case.train,
    )  # fmt: skip
    return Form("sparsec", f"{name}_x{times}", case=plain, times=times)
