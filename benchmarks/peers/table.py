"""Which forms count for which kind of case."""

from sparsec.benchmarks.cases import Case, FullCase, HsaCase, MobaCase, SelectedCase, WindowCase
from sparsec.benchmarks.cases_lola import LolaCase
from sparsec.benchmarks.cases_nsa import BlocksCase, NsaCase, SelectorCase
from sparsec.benchmarks.cases_rsa import RsaCase
from sparsec.benchmarks.cases_scan import LevelsCase, ScanCase
from sparsec.benchmarks.cases_sections import SectionsCase
from sparsec.benchmarks.cases_sse import SseCase
from sparsec.benchmarks.peers import (
    compositions,
    fla_nsa,
    fla_scan,
    flex_blocks,
    flex_window,
    own_hsa,
    own_nsa,
    own_passes,
    sdpa,
)
from sparsec.benchmarks.peers.form import Form


def forms_for(case: Case) -> list[Form]:
    """Every form of every peer that can compute the case; none for a part that no peer has by itself."""
    match case:
        case FullCase():
            return sdpa.forms(case)
        case WindowCase():
            return flex_window.forms(case)
        case BlocksCase():
            return flex_blocks.forms(case)
        case SelectedCase():
            return fla_nsa.forms(case)
        case HsaCase():
            return _of_hsa(case)
        case MobaCase():
            return compositions.moba_forms(case)
        case SelectorCase():
            return []
        case NsaCase():
            return fla_nsa.whole_forms(case)
        case _:
            return _of_states(case)


def _of_hsa(case: HsaCase) -> list[Form]:
    if isinstance(case, SectionsCase):
        return own_hsa.forms(case)
    return own_nsa.forms(case) if case.beside == "nsa" else compositions.hsa_forms(case)


def _of_states(case: Case) -> list[Form]:
    if isinstance(case, SseCase | RsaCase | LolaCase):
        return own_passes.forms(case)
    if isinstance(case, LevelsCase):
        return own_passes.forms(case) + fla_scan.forms(case)
    if not isinstance(case, ScanCase):
        raise TypeError(f"no peer for {type(case).__name__}")
    return fla_scan.forms(case)
