"""From a command line's words to a variant and its dims: ``hsa chunk=64 T=4096``, ``a.sparsec``, ``-``, ``a.py:f``."""

from __future__ import annotations

import importlib.util
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from sparsec.frontends.preset import NAMES
from sparsec.ir.error import DeclarationError
from sparsec.ir.suggest import did_you_mean
from sparsec.ir.variant import Variant

LARGEST = 2**31 - 1
"""What a launch parameter can hold."""


@dataclass(frozen=True, slots=True)
class Named:
    """A variant as it was named, and the dims that were set beside it."""

    variant: Variant
    dims: Mapping[str, int]


def named(words: Sequence[str]) -> Named:
    """The variant and the dims of a command line; ``-`` is text on standard input.

    Raises:
        DeclarationError: an unknown preset, knob or name, a word that is no KEY=VALUE, or what the file itself raises.
        OSError: a file that cannot be read.
    """
    name, *settings = words
    dims = {key: _size(key, text) for key, text in _pairs(settings) if key.isupper()}
    knobs = [f"{key}={text}" for key, text in _pairs(settings) if not key.isupper()]
    if name == "-":
        _no_knobs("<stdin>", knobs)
        from sparsec.frontends.text import parse

        return Named(parse(sys.stdin.read(), "<stdin>"), dims)
    if name.endswith(".sparsec"):
        _no_knobs(name, knobs)
        from sparsec.frontends.text import load

        return Named(load(name), dims)
    if ".py" in name:
        _no_knobs(name, knobs)
        return Named(_from_python(name), dims)
    from sparsec.frontends.preset import parse_knobs, preset

    return Named(preset(name, **parse_knobs(name, knobs)), dims)


def _pairs(settings: Sequence[str]) -> list[tuple[str, str]]:
    for word in settings:
        if "=" not in word:
            rule, fix = "after the variant come KNOB=VALUE and DIM=SIZE", f"{word}=…, or quote the path"
            if word in NAMES or ".py" in word or word.endswith(".sparsec"):
                rule, fix = "one variant at a time", f"run the command again for {word}"
            raise DeclarationError("command line", word, rule, fix)
    return [(key, text) for key, _, text in (word.partition("=") for word in settings)]


def _size(key: str, text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) < 20 and int(text) <= LARGEST):
        rule = f"a dim is a whole number from 0 to {LARGEST}"
        raise DeclarationError(f"dim {key}", f"{key}={text}", rule, f"{key}=1024")
    return int(text)


def _no_knobs(name: str, knobs: Sequence[str]) -> None:
    if knobs:
        raise DeclarationError(f"file {name}", knobs[0], "only presets have knobs", "change the file, or drop it")


def _from_python(name: str) -> Variant:
    file, _, attribute = name.rpartition(":") if ":" in name else (name, "", "")
    module = _module(Path(file))
    found = {key: value for key, value in vars(module).items() if isinstance(value, Variant)}
    if attribute in found:
        return found[attribute]
    if not attribute and len(found) == 1:
        return next(iter(found.values()))
    said = attribute or f"{len(found)} variants"
    fix = did_you_mean(attribute, found) if attribute else f"{file}:{next(iter(found), '<name>')}"
    raise DeclarationError(f"file {file}", said, "name one variant that the file defines", fix)


def _module(path: Path) -> ModuleType:
    if not path.is_file():
        raise FileNotFoundError(2, "there is no such file", str(path))
    name = f"sparsec_file_{path.stem}"  # no module that the file might import has this name
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None, path
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where dataclasses look up what annotations mean
    try:
        with _beside(path):
            spec.loader.exec_module(module)
    except Exception as error:
        line = _line(path, error)
        if line is None:
            raise
        said = f"{type(error).__name__}: {error}"
        rule = "the file must run without an error"
        raise DeclarationError(f"file {path}, line {line}", said, rule, "correct it; --traceback says more") from error
    return module


@contextmanager
def _beside(path: Path) -> Iterator[None]:
    """Modules beside a file can be imported, as where Python runs it; afterwards installed ones come first."""
    folder = str(path.resolve().parent)
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)
        if folder not in sys.path:
            sys.path.append(folder)


def _line(path: Path, error: Exception) -> int | None:
    """The line of a user's file where its own code, its syntax or an import fails; None for any other error."""
    if isinstance(error, SyntaxError):
        return error.lineno if error.filename == str(path) else None
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if frame.filename == str(path)]
    if own and (isinstance(error, ImportError) or frames[-1] is own[-1]):
        return own[-1].lineno
    return None
