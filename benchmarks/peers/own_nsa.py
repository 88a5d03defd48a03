"""sparsec's own NSA, with its compression and its selector, as what HSA is compared with: equal tokens are read."""

from sparsec.benchmarks.cases import HsaCase
from sparsec.benchmarks.cases_nsa import NsaCase
from sparsec.benchmarks.peers.form import Form


def forms(case: HsaCase) -> list[Form]:
    """Windows of whole blocks, and the published ones that overlap; each is built, tuned and checked as a case."""
    windows = {"nsa": (case.chunk, case.chunk), "nsa_overlapping": (case.chunk // 2, case.chunk // 4)}
    return [Form("sparsec", name, case=_nsa(case, name, *window)) for name, window in windows.items()]


def _nsa(case: HsaCase, name: str, size: int, stride: int) -> NsaCase:
    return NsaCase(
        f"{case.name}_{name}", case.B, case.H, case.HKV, case.T, case.D, case.k, case.chunk, size, stride,
        device=case.device, dtype=case.dtype, span=case.span, train=case.train,
    )  # fmt: skip
