"""The named cases. Shapes and random draws of window and selected are those of the published peer figures."""

from dataclasses import replace

import torch

from sparsec.benchmarks.cases import Case, HsaCase, MobaCase, SelectedCase, WindowCase
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


_CASES: tuple[Case, ...] = (
    WindowCase("window", 1, 32, 8, 32768, 128),
    *_selected(),
    HsaCase("hsa", 8, 16, 1, 16384, 64),
    HsaCase("hsa_correlated", 8, 16, 1, 16384, 64, span=128),
    MobaCase("moba", 1, 32, 8, 16384, 128),
    MobaCase("moba_correlated", 1, 32, 8, 16384, 128, span=128),
    MobaCase("moba_k8", 1, 32, 8, 16384, 128, k=8),
    WindowCase("window_cpu", 1, 8, 8, 4096, 64, 512, 64, device="cpu", dtype=torch.float32),
)

_TRAINED = ("window", *(case.name for case in _selected()))
"""The cases with a row for one forward and one backward, named after them."""

CASES: dict[str, Case] = {case.name: case for case in _CASES}
CASES |= {f"{name}_train": replace(CASES[name], name=f"{name}_train", train=True) for name in _TRAINED}


def cases_named(names: list[str] | tuple[str, ...]) -> list[Case]:
    """The cases of these names; a name that is none is an error with the nearest, or all."""
    unknown = [name for name in names if name not in CASES]
    if unknown:
        raise InputError("case", repr(unknown[0]), "there is no such case", did_you_mean(unknown[0], CASES))
    return [CASES[name] for name in names]


def cases_on(device: str) -> list[Case]:
    """The cases of one device type, `cuda` or `cpu`."""
    return [case for case in CASES.values() if case.device == device]
