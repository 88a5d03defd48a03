"""Triton's interpreter at a better pace: what it works out again at every call of a jitted function is kept."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import wraps
from typing import Any


def keep_pace() -> None:
    """For this process: the language is patched once per launch and module, and the dtype of numpy looked up once.

    Triton patches all of ``triton.language`` again at each nested call (``tl.sum``, ``tl.sort``), which changes
    nothing and takes a third of its time. Does nothing where Triton compiles, or its interpreter has another form.
    """
    if not os.environ.get("TRITON_INTERPRET"):
        return
    from triton.runtime import interpreter

    if not all(hasattr(interpreter, name) for name in ("_patch_lang", "_get_np_dtype", "GridExecutor")):
        return
    patched: set[frozenset[int]] = set()
    interpreter._patch_lang = _once(interpreter._patch_lang, patched)
    interpreter._get_np_dtype = _looked_up(interpreter._get_np_dtype)
    interpreter.GridExecutor.__call__ = _from_nothing(interpreter.GridExecutor.__call__, patched)


def _once(patch: Callable[[Any], Any], patched: set[frozenset[int]]) -> Callable[[Any], Any]:
    """The patch of a function's languages; None where the launch has had it."""
    from triton import language

    languages = {id(language), id(language.core)}

    def patch_once(function: Any) -> Any:
        seen = frozenset(languages.intersection(map(id, function.__globals__.values())))
        if seen in patched:
            return None
        patched.add(seen)
        return patch(function)

    return patch_once


def _from_nothing(launch: Callable[..., None], patched: set[frozenset[int]]) -> Callable[..., None]:
    """A launch, which undoes its own patch when it ends."""

    @wraps(launch)
    def launched(*args: Any, **kwargs: Any) -> None:
        patched.clear()
        launch(*args, **kwargs)

    return launched


def _looked_up(find: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """The same by the name of a dtype that has one of its own."""
    by_name: dict[str, Any] = {}

    def found(dtype: Any) -> Any:
        name = getattr(dtype, "name", None)
        if name is None:
            return find(dtype)
        if name not in by_name:
            by_name[name] = find(dtype)
        return by_name[name]

    return found
