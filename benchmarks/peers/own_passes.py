"""sparsec's own plain recurrences, as what states of several parts or levels are compared with."""

from typing import Any

from sparsec.benchmarks.cases import Case, WindowCase
from sparsec.benchmarks.cases_lola import LolaCase
from sparsec.benchmarks.cases_rsa import RsaCase
from sparsec.benchmarks.cases_scan import GdnCase, GlaCase, LevelsCase, ScanCase
from sparsec.benchmarks.cases_sse import SseCase
from sparsec.benchmarks.peers.form import Form


def forms(case: SseCase | RsaCase | LevelsCase | LolaCase) -> list[Form]:
    """One form: as many plain passes as a token reads states; of levels on a schedule one pass, their base.

    Of a window with a cache, a window and sinks of the same sizes.
    """
    if isinstance(case, LolaCase):
        sizes = case.B, case.H, case.HKV, case.T, case.D, case.window, case.keep
        return [Form("sparsec", "window", case=WindowCase(f"{case.name}_window", *sizes, **_where(case)))]
    if isinstance(case, RsaCase):
        return [_passes(case, "gdn", GdnCase, len(case.parts))]
    if isinstance(case, SseCase):
        return [_passes(case, "gdn", GdnCase, 2) if case.delta else _passes(case, "gla", GlaCase, 2)]
    return [_passes(case, "gdn", GdnCase, 1) if case.delta else _passes(case, "simple_gla", ScanCase, 1)]


def _passes(case: Case, name: str, kind: type[ScanCase], times: int) -> Form:
    plain = kind(f"{case.name}_{name}", case.B, case.H, case.HKV, case.T, case.D, train=case.train, **_where(case))
    return Form("sparsec", f"{name}_x{times}", case=plain, times=times)


def _where(case: Case) -> dict[str, Any]:
    return {"device": case.device, "dtype": case.dtype}
