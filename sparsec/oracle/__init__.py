"""The truth: what each graph means in fp64, token by token, independent of the compiler.

The module can be called like its function: ``sparsec.oracle(variant, q=q, k=k, v=v)`` or ``oracle(variant, inputs)``.
"""

import sys
from types import ModuleType
from typing import Any

from sparsec.oracle.error import BOUNDS, Verdict, check
from sparsec.oracle.gap import same_selection, selection_gap
from sparsec.oracle.mass import Mass, kept_mass
from sparsec.oracle.truth import Result, evaluate_node, oracle, oracle_rows
from sparsec.oracle.values import Chosen, Memory, OracleError

__all__ = [
    "BOUNDS",
    "Chosen",
    "Mass",
    "Memory",
    "OracleError",
    "Verdict",
    "check",
    "evaluate_node",
    "kept_mass",
    "oracle",
    "oracle_rows",
    "same_selection",
    "selection_gap",
]


class _Callable(ModuleType):
    """`sparsec.oracle` is both this package and, as the public face promises, a function."""

    def __call__(self, variant: Any, inputs: Any = None, /, **named: Any) -> Result:
        """The outputs of a variant in fp64; inputs as a mapping or by name, `form` and `q_offset` as in `oracle`."""
        how = {name: named.pop(name) for name in ("form", "q_offset") if name in named and name not in variant.inputs}
        result: Result = oracle(variant, {**(inputs or {}), **named}, **how)
        return result


sys.modules[__name__].__class__ = _Callable
