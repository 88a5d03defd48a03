"""sparsec's own HSA that chooses as many chunks from all, as what a choice in sections is compared with."""

from sparsec.benchmarks.cases import HsaCase
from sparsec.benchmarks.cases_sections import SectionsCase
from sparsec.benchmarks.peers.form import Form


def forms(case: SectionsCase) -> list[Form]:
    """One form, built, tuned and checked as a case."""
    flat = HsaCase(
        f"{case.name}_flat", case.B, case.H, case.HKV, case.T, case.D, case.chunk, case.k, case.retrieval,
        device=case.device, dtype=case.dtype, span=case.span, train=case.train,
    )  # fmt: skip
    return [Form("sparsec", "hsa", case=flat)]
