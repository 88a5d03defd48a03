"""The recurrences behind flash-linear-attention's ops, declared and compiled once per form."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Literal

from sparsec.frontends.recurrent import bank, keys, log_decays, queries, results, several, unit, values
from sparsec.ir import build as lang
from sparsec.ir.build_state import write
from sparsec.ir.node import Node
from sparsec.ir.variant import Variant, variant
from sparsec.runtime.compiled import Compiled, compile


@dataclass(frozen=True, slots=True)
class Form:
    """What a recurrence is, beside its shapes.

    Attributes:
        scale: of the queries.
        rule: additive or delta writes.
        decay: none, one log-decay per head, per key channel, or per value channel.
        rated: whether writes have a rate beta.
        erase: vectors a and b in place of −k and beta·k, and which state they read; "" for none.
        unit: whether queries and keys are made unit vectors.
        initial: whether the states before the first token are given.
        final: whether the states after the last token are asked for.
        steps: writes per token; k, v and beta have so many heads per state.
    """

    scale: float
    rule: Literal["additive", "delta"] = "additive"
    decay: Literal["", "head", "key", "value"] = ""
    rated: bool = False
    erase: Literal["", "decayed", "undecayed"] = ""
    unit: bool = False
    initial: bool = False
    final: bool = False
    steps: int = 1


def declare(form: Form) -> Variant:
    """Inputs q, k, v, and g, beta, a, b and m where the form has them, named as in the presets with ``raw=true``."""
    each = several(form.steps)
    q, k = (unit(x) if form.unit else x for x in (queries(), keys(each)))
    how: dict[str, Node] = {}
    if form.decay:
        how["decay"] = log_decays({"key": "D", "value": "DV"}.get(form.decay, ""))
    if form.rated:
        how["beta"] = lang.input("beta", f"B T {each} float32")
    if form.erase:
        how |= {f"erase_{x}": lang.input(x, f"B T {each} D") for x in "ab"}
    kind = {"": "none", "head": "scalar"}.get(form.decay, form.decay)
    written = write(
        bank(form.initial), k, values(each), rule=form.rule, decay_kind=kind, reads=form.erase or "decayed",
        steps=form.steps, **how,  # type: ignore[arg-type]
    )  # fmt: skip
    return variant("recurrence", results(q, written, form.final, scale=form.scale))


@cache
def compiled(form: Form, device: str) -> Compiled:
    """The kernels of a form on "cpu" or "cuda"."""
    return compile(declare(form), target=device)
