"""Which forms count for which kind of case."""

from sparsec.benchmarks.cases import Case, HsaCase, MobaCase, SelectedCase, WindowCase
from sparsec.benchmarks.peers import compositions, fla_nsa, flex_window
from sparsec.benchmarks.peers.form import Form


def forms_for(case: Case) -> list[Form]:
    """Every form of every peer that can compute the case."""
    match case:
        case WindowCase():
            return flex_window.forms(case)
        case SelectedCase():
            return fla_nsa.forms(case)
        case HsaCase():
            return compositions.hsa_forms(case)
        case MobaCase():
            return compositions.moba_forms(case)
        case _:
            raise TypeError(f"no peer for {type(case).__name__}")
