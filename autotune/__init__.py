"""The tuner: search space, admission, measurement and stored trials."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sparsec.autotune.report import KernelReport, Report
    from sparsec.autotune.trial import Trial, TuneError
    from sparsec.autotune.tuner import tune

__all__ = ["KernelReport", "Report", "Trial", "TuneError", "tune"]

_HOMES = {"tune": "tuner", "Report": "report", "KernelReport": "report", "Trial": "trial", "TuneError": "trial"}


def __getattr__(name: str) -> object:
    """Public names, loaded when they are first used: a compiling process needs none of them."""
    from importlib import import_module

    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
