"""The inputs and functions that most designs share, under one set of names and dims."""

from __future__ import annotations

from typing import Literal

from sparsec.ir import build as lang
from sparsec.ir.node import Node

Gates = Literal["sigmoid", "given"]


def queries() -> Node:
    """q ``[B,TQ,H,D]``."""
    return lang.input("q", "B TQ H D")


def keys_values(branch: str = "", chunk: int | None = None) -> Node:
    """k ``[B,TK,HKV,D]`` and v ``[B,TK,HKV,DV]`` as a memory; ``branch`` ends their names where it has its own."""
    ending = f"_{branch}" if branch else ""
    k = lang.input(f"k{ending}", "B TK HKV D")
    return lang.tokens(k, lang.input(f"v{ending}", "B TK HKV DV"), chunk=chunk)


def gate(branch: str, gates: Gates) -> Node:
    """A branch's gate ``[B,TQ,H]``: the sigmoid of its input, or the input as it is."""
    raw = lang.input(f"g_{branch}", "B TQ H")
    return lang.map(raw, fn="sigmoid(x0)") if gates == "sigmoid" else raw
