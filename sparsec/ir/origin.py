"""Where a node was written. Kept beside the nodes, so that equal nodes stay one node wherever they are written."""

from __future__ import annotations

import dis
import sys
import weakref
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from types import FrameType
from typing import Any


@dataclass(frozen=True, slots=True)
class Origin:
    """A place in a source text, and the name that the node was given there."""

    file: str
    line: int
    column: int = 0
    name: str | None = None

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}" if self.column else f"{self.file}:{self.line}"


_STATED: ContextVar[Origin | None] = ContextVar("stated", default=None)
_ORIGINS: weakref.WeakKeyDictionary[Any, Origin] = weakref.WeakKeyDictionary()


@contextmanager
def stated(origin: Origin) -> Iterator[None]:
    """Nodes built inside come from ``origin`` instead of from the calling Python line."""
    token = _STATED.set(origin)
    try:
        yield
    finally:
        _STATED.reset(token)


def written_as(node: object) -> AbstractContextManager[None]:
    """What is built inside comes from a node's own place and keeps its name, if these are known."""
    origin = origin_of(node)
    return nullcontext() if origin is None else stated(origin)


def here() -> Origin | None:
    """The stated origin, else the nearest Python frame outside ``sparsec.ir``."""
    origin = _STATED.get()
    if origin is not None:
        return origin
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_globals.get("__name__", "").startswith("sparsec.ir"):
        frame = frame.f_back
    return Origin(frame.f_code.co_filename, frame.f_lineno, name=_assigned(frame)) if frame else None


def caller() -> Origin | None:
    """The nearest Python line outside the package, for errors inside what the package declares; None on its own
    command line."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and _module(frame)[0] == "sparsec":
        if _module(frame)[1:2] == ["cli"]:
            return None
        frame = frame.f_back
    return Origin(frame.f_code.co_filename, frame.f_lineno, name=_assigned(frame)) if frame else None


def _module(frame: FrameType) -> list[str]:
    return str(frame.f_globals.get("__name__", "")).split(".")


def _assigned(frame: FrameType) -> str | None:
    """The variable that the call in progress is assigned to: the store right after it, if there is one."""
    for instruction in dis.get_instructions(frame.f_code):
        if instruction.offset > frame.f_lasti:
            stored = instruction.argval if instruction.opname.startswith("STORE_") else None
            return stored[0] if isinstance(stored, tuple) else stored  # a tuple where Python fuses two instructions
    return None


def record(node: object, origin: Origin | None) -> None:
    """Remembers where a node was last written."""
    if origin is not None:
        _ORIGINS[node] = origin


def origin_of(node: object) -> Origin | None:
    """Where a node was last written, if known."""
    return _ORIGINS.get(node)


def origins_of(nodes: Iterable[object]) -> dict[Any, Origin]:
    """Where nodes were written, of which that is known."""
    return {node: found for node in nodes if (found := origin_of(node)) is not None}


def written_again(origins: Mapping[Any, Origin]) -> None:
    """Take nodes as written there: equal nodes are one node, and another variant may have written them since."""
    for node, origin in origins.items():
        record(node, origin)
