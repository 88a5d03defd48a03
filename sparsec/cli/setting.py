"""A variant on a target at given dims: what most commands work on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sparsec.cli.naming import named
from sparsec.ir.error import InputError
from sparsec.ir.variant import dim_names
from sparsec.runtime.compiled import Compiled, compile
from sparsec.runtime.inputs import sizes

if TYPE_CHECKING:
    from torch import Tensor

    from sparsec.plan.plan import Plan

DTYPES = ("float32", "float16", "bfloat16")


@dataclass(frozen=True, slots=True)
class Setting:
    """A compiled variant with dims; ``dims`` has every dim of the declaration and ``q_offset``."""

    compiled: Compiled
    dims: Mapping[str, int]
    dtype: str

    @property
    def plan(self) -> Plan:
        """The plan at these dims."""
        return self.compiled.plan(self.dims, self.dtype)

    def inputs(self, seed: int = 0, device: str | None = None) -> dict[str, Tensor]:
        """Random inputs of these dims on the target's device."""
        from sparsec.runtime.inputs import inputs

        dims = {name: size for name, size in self.dims.items() if name != "q_offset"}
        where = device or self.compiled.target.device
        return inputs(self.compiled.variant, dtype=self.dtype, device=where, seed=seed, **dims)


def setting(words: Sequence[str], target: str, dtype: str = "", defaults: Mapping[str, int] | None = None) -> Setting:
    """The setting that a command line names; ``defaults`` are dims for this command where the line sets none.

    Raises:
        DeclarationError, InputError, TargetError: what the words, dims, dtype or target do not allow.
    """
    asked = named(words)
    compiled = compile(asked.variant, target)
    known = {**(defaults or {}), **asked.dims}
    legal = {n: d for n, d in known.items() if n in asked.dims or n in {*dim_names(asked.variant), "T"}}
    dims = at(compiled, legal)
    usual = "bfloat16" if compiled.target.backend == "triton" else "float32"
    return Setting(compiled, dims, float_dtype(dtype) or usual)


def at(compiled: Compiled, given: Mapping[str, int]) -> dict[str, int]:
    """Every dim, and the position of the first query. Raises InputError for dims that no call has."""
    dims = sizes(compiled.variant, given)
    return {**dims, "q_offset": max(compiled.lengths.offset(dims), 0)}


def float_dtype(asked: str) -> str:
    """The dtype that was asked for, "" for none. Raises InputError where no kernel takes it."""
    if asked and asked not in DTYPES:
        raise InputError("dtype", asked, f"kernels take {', '.join(DTYPES)}", "choose one of them")
    return asked
