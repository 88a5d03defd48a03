"""The named cases. Shapes and random draws of window and selected are those of the published peer figures."""

from dataclasses import replace

import torch

from sparsec.benchmarks.cases import Case, FullCase, HsaCase, MobaCase, SelectedCase, WindowCase
from sparsec.benchmarks.cases_lola import LolaCase
from sparsec.benchmarks.cases_nsa import BlocksCase, NsaCase, SelectorCase
from sparsec.benchmarks.cases_rsa import RsaCase
from sparsec.benchmarks.cases_scan import (
    DeltaCase,
    GdnCase,
    GdnLevelsCase,
    GlaCase,
    KdaCase,
    LevelsCase,
    ProductCase,
    Rwkv7Case,
    ScanCase,
)
from sparsec.benchmarks.cases_sections import SectionsCase
from sparsec.benchmarks.cases_sse import SseCase, SseGdnCase
from sparsec.benchmarks.groups import groups
from sparsec.ir.error import InputError
from sparsec.ir.suggest import did_you_mean

_SELECTED = {
    "selected_t32768": (1, 64, 4, 32768, 128, 16),
    "selected_t8192": (1, 32, 1, 8192, 128, 16),
    "selected_hsa_shape": (8, 16, 1, 16384, 64, 8),
}


def _selected() -> list[Case]:
    """Every selected shape with independent and with correlated neighbours."""
    draws = (("random", 0.0), ("correlated", 0.9))
    return [
        SelectedCase(f"{name}_{draw}", *shape, keep=keep) for name, shape in _SELECTED.items() for draw, keep in draws
    ]


_STATES = (1, 16, 16, 16384, 128)

_SCANS: tuple[Case, ...] = (
    ScanCase("simple_gla", *_STATES),
    GlaCase("gla", *_STATES),
    DeltaCase("delta", *_STATES),
    GdnCase("gdn", *_STATES),
    KdaCase("kda", *_STATES),
    Rwkv7Case("rwkv7", *_STATES),
    ProductCase("delta_product", *_STATES),
    LevelsCase("log_linear", *_STATES),
    GdnLevelsCase("log_linear_gdn", *_STATES),
)

_ROUTED: tuple[Case, ...] = (
    SseCase("sse_n4", *_STATES, parts=4),
    SseCase("sse_n32", *_STATES, parts=32),
    SseGdnCase("sse_gdn_n4", *_STATES, parts=4),
    SseGdnCase("sse_gdn_n32", *_STATES, parts=32),
    RsaCase("rsa", *_STATES),
)

_CASES: tuple[Case, ...] = (
    WindowCase("window", 1, 32, 8, 32768, 128),
    BlocksCase("blocks", 1, 32, 8, 32768, 128),
    *_selected(),
    NsaCase("nsa_t32768", 1, 64, 4, 32768, 128),
    NsaCase("nsa_t8192", 1, 32, 1, 8192, 128),
    SelectorCase("selector_128k", 1, 64, 4, 131072, 128),
    SelectorCase("selector_128k_32_16", 1, 64, 4, 131072, 128, size=32, stride=16),
    FullCase("full", 1, 32, 32, 16384, 128),
    HsaCase("hsa", 8, 16, 1, 16384, 64),
    HsaCase("hsa_correlated", 8, 16, 1, 16384, 64, span=128),
    HsaCase("hsa_beside_nsa", 8, 16, 1, 16384, 64, beside="nsa"),
    HsaCase("hsa_beside_nsa_correlated", 8, 16, 1, 16384, 64, span=128, beside="nsa"),
    SectionsCase("hsa_levels", 1, 16, 2, 32768, 64),
    SectionsCase("hsa_levels_128k", 1, 16, 2, 131072, 64),
    MobaCase("moba", 1, 32, 8, 16384, 128),
    MobaCase("moba_correlated", 1, 32, 8, 16384, 128, span=128),
    MobaCase("moba_k8", 1, 32, 8, 16384, 128, k=8),
    *_SCANS,
    *_ROUTED,
    LolaCase("lola", 1, 32, 8, 16384, 128),
    GdnCase("gdn_t65536", 1, 16, 16, 65536, 128),
    GdnCase("gdn_b64", 64, 16, 16, 2048, 128),
    HsaCase("hsa_b64", 64, 16, 1, 2048, 64),
    HsaCase("hsa_b64_beside_nsa", 64, 16, 1, 2048, 64, beside="nsa"),
    SectionsCase("hsa_levels_cpu", 1, 4, 2, 32768, 64, device="cpu", dtype=torch.float32),
    WindowCase("window_cpu", 1, 8, 8, 4096, 64, 512, 64, device="cpu", dtype=torch.float32),
)

_TRAINED = (
    "window",
    "blocks",
    *(case.name for case in _selected()),
    "nsa_t32768",
    "nsa_t8192",
    "gdn_b64",
    *(case.name for case in (*_SCANS, *_ROUTED)),
)
"""The cases with a row for one forward and one backward, named after them."""

_HSA_TRAINED = {
    "hsa_train": "hsa_beside_nsa",
    "hsa_correlated_train": "hsa_beside_nsa_correlated",
    "hsa_b64_train": "hsa_b64_beside_nsa",
}
"""HSA forward and backward is timed beside NSA alone: the compositions of torch operators keep every chunk's scores."""

CASES: dict[str, Case] = {case.name: case for case in _CASES}
CASES |= {f"{name}_train": replace(CASES[name], name=f"{name}_train", train=True) for name in _TRAINED}
CASES |= {name: replace(CASES[base], name=name, train=True) for name, base in _HSA_TRAINED.items()}

GROUPS = groups(CASES.values())


def cases_named(names: list[str] | tuple[str, ...]) -> list[Case]:
    """The cases of these names and groups, each once; a name that is neither is an error with the nearest, or all."""
    known = {**{name: (name,) for name in CASES}, **GROUPS}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise InputError("case", repr(unknown[0]), "there is no such case", did_you_mean(unknown[0], known))
    return [CASES[case] for case in dict.fromkeys(c for name in names for c in known[name])]


def cases_on(device: str) -> list[Case]:
    """The cases of one device type, `cuda` or `cpu`."""
    return [case for case in CASES.values() if case.device == device]
