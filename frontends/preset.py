"""Published designs by name: ``preset("hsa", chunk=64, k=8)``. Each is a function of knobs in ``frontends/presets``."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin, get_type_hints

from sparsec.ir.error import DeclarationError
from sparsec.ir.node import Node
from sparsec.ir.origin import caller
from sparsec.ir.suggest import did_you_mean
from sparsec.ir.variant import Variant, variant

NAMES = (
    "full", "streaming", "fox", "msa", "longformer", "bigbird", "hsa", "nsa", "moba", "infllm2", "minimax", "dsa",
    "evermind", "linear", "retnet", "mamba2", "gla", "hgrn2", "deltanet", "gdn", "delta_product", "kda", "gdn2",
    "rwkv7", "sse", "sse_gdn", "rsa", "gsa", "log_linear", "row_sparse", "mamba1", "lola",
)  # fmt: skip

FULL_NAMES = {
    "attention": "full", "sliding_window": "streaming", "forgetting_transformer": "fox", "mixture_of_block_attention":
    "moba", "native_sparse_attention": "nsa", "linear_attention": "linear", "retention": "retnet", "mamba":
    "mamba1` or `mamba2", "gated_linear_attention": "gla", "gated_slot_attention": "gsa", "gated_deltanet": "gdn",
    "gated_delta_net": "gdn", "gated_delta_rule": "gdn", "gated_deltanet2": "gdn2", "delta_net": "deltanet",
    "delta_rule": "deltanet", "deltaproduct": "delta_product", "kimi_delta_attention": "kda",
}  # fmt: skip
"""What designs are called elsewhere, and their presets."""


@dataclass(frozen=True, slots=True)
class Knob:
    """One knob: its default, what it means with its unit, and the words that it may be, if it is a word."""

    name: str
    default: int | float | bool | str
    meaning: str
    choices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Preset:
    """One design: its name, one line about it, its knobs and the function that declares it."""

    name: str
    summary: str
    knobs: tuple[Knob, ...]
    declare: Callable[..., Node | tuple[Node, ...]]


def presets() -> tuple[Preset, ...]:
    """Every design that there is."""
    return tuple(find(name) for name in NAMES)


def find(name: str) -> Preset:
    """A design by name.

    Raises:
        DeclarationError: there is none of that name.
    """
    if name not in NAMES:
        raise DeclarationError("preset", name, "there is no such preset", _fix(name))
    declare = getattr(importlib.import_module(f"sparsec.frontends.presets.{name}"), name)
    doc = inspect.getdoc(declare) or ""
    meanings = dict(re.findall(r"^ {4}(\w+): (.+)$", doc, re.MULTILINE))
    return Preset(name, doc.splitlines()[0], _knobs(declare, meanings), declare)


def _fix(name: str) -> str:
    known = FULL_NAMES.get(name.lower().replace("-", "_"))
    return f"did you mean `{known}`?" if known else did_you_mean(name, NAMES)


def _knobs(declare: Callable[..., Any], meanings: dict[str, str]) -> tuple[Knob, ...]:
    hints = get_type_hints(declare)
    parameters = inspect.signature(declare).parameters.values()
    return tuple(Knob(p.name, p.default, meanings[p.name], _words(hints[p.name])) for p in parameters)


def _words(hint: Any) -> tuple[str, ...]:
    return tuple(get_args(hint)) if get_origin(hint) is Literal else ()


def preset(name: str, **knobs: object) -> Variant:
    """The variant of a design with some knobs set; ``sparsec list`` and ``presets()`` say which there are.

    Raises:
        DeclarationError: an unknown preset or knob, a value of the wrong kind, or one that breaks a rule of the graph.
    """
    try:
        return _declared(name, knobs)
    except DeclarationError as error:
        where = error.node if error.node.startswith("preset") else f"preset {name}, {error.node}"
        raise DeclarationError(where, error.value, error.rule, error.fix, caller()) from error


def _declared(name: str, knobs: dict[str, object]) -> Variant:
    found = find(name)
    known = {knob.name: knob for knob in found.knobs}
    for key, value in knobs.items():
        if key not in known:
            raise DeclarationError(f"preset {name}", key, "it has no such knob", did_you_mean(key, known))
        _check(found, known[key], value)
    settings = {key: knob.default for key, knob in known.items()} | knobs
    try:
        outputs = found.declare(**settings)
    except ZeroDivisionError as error:
        nothing = [key for key, value in knobs.items() if value == 0]
        said = ", ".join(f"{key} = 0" for key in nothing)
        fix = ", ".join(f"{key} = {known[key].default}" for key in nothing)
        raise DeclarationError(
            f"preset {name}", said, "sizes that others are divided by are at least 1", fix
        ) from error
    return variant(name, outputs, knobs=settings)


def _check(preset: Preset, knob: Knob, value: object) -> None:
    where, said = f"preset {preset.name}", f"{knob.name} = {value!r}"
    if knob.choices and value not in knob.choices:
        fix = did_you_mean(str(value), knob.choices)
        raise DeclarationError(where, said, f"it is one of {', '.join(knob.choices)}", fix)
    kind = type(knob.default)
    if type(value) is not kind and not (kind is float and type(value) is int):
        raise DeclarationError(where, said, f"it is of type {kind.__name__}", f"such as {knob.default!r}")
    if isinstance(value, int | float) and value < 0:
        raise DeclarationError(where, said, f"it is at least {_least(preset, knob)}", f"such as {knob.default!r}")


def _least(preset: Preset, knob: Knob) -> int:
    """0 where that is legal beside the defaults of the other knobs, else 1."""
    try:
        preset.declare(**{k.name: k.default for k in preset.knobs} | {knob.name: 0})
    except (DeclarationError, ArithmeticError):
        return 1
    return 0


def parse_knobs(name: str, words: list[str]) -> dict[str, int | float | bool | str]:
    """Knobs as words of a command line, ``chunk=64``, in the type of their defaults.

    Raises:
        DeclarationError: an unknown preset or knob, or a word that its type cannot read.
    """
    known = {knob.name: knob for knob in find(name).knobs}
    done: dict[str, int | float | bool | str] = {}
    for word in words:
        key, _, text = word.partition("=")
        if key not in known:
            raise DeclarationError(f"preset {name}", key, "it has no such knob", did_you_mean(key, known))
        done[key] = _read(name, known[key], text)
    return done


def _read(name: str, knob: Knob, text: str) -> int | float | bool | str:
    kind = type(knob.default)
    try:
        return {"true": True, "false": False}[text.lower()] if kind is bool else kind(text)
    except (KeyError, ValueError):
        wanted = "true or false" if kind is bool else f"of type {kind.__name__}"
        said = f"{knob.name} = {text}"
        raise DeclarationError(f"preset {name}", said, f"it is {wanted}", f"such as {knob.default}") from None
