"""The main job: variants tuned on real inputs, beside dense attention and FlexAttention, with a report to look at."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sparsec.autotune.job.given import Given, load
    from sparsec.autotune.job.outcome import Outcome
    from sparsec.autotune.job.run import Limits, run_job

__all__ = ["Given", "Limits", "Outcome", "load", "run_job"]

_HOMES = {"Given": "given", "load": "given", "Outcome": "outcome", "Limits": "run", "run_job": "run"}


def __getattr__(name: str) -> object:
    """Public names, loaded when they are first used."""
    from importlib import import_module

    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
