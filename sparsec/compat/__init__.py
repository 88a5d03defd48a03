"""Names and signatures of other libraries over sparsec's kernels, so that a program switches by changing an import."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sparsec.compat import fla

__all__ = ["fla"]


def __getattr__(name: str) -> object:
    """A library's names, loaded when they are first asked for."""
    if name not in __all__:
        raise AttributeError(f"module 'sparsec.compat' has no attribute {name!r}; it has {', '.join(__all__)}")
    return import_module(f"sparsec.compat.{name}")
