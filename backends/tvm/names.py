"""Names in printed source: those of the program, kept clear of words that TVMScript needs."""

from __future__ import annotations

import keyword
import re

RESERVED = frozenset({"T", "I", "R", "range", "task"})
OWN = re.compile(r"[a-z_0-9]*\d|\w*_(s|n|data)\d")


def safe(name: str) -> str:
    """The name of a tensor or parameter as printed; lower-case names ending in a digit belong to the printer.

    So do those that it makes of another name: its strides, its length and its address.
    """
    plain = re.sub(r"\W", "_", name)
    if plain in RESERVED or keyword.iskeyword(plain) or plain[:1].isdigit() or OWN.fullmatch(plain):
        return f"{plain}_"
    return plain


def stride_name(tensor: str, dimension: int) -> str:
    """The name of a stride argument as printed."""
    return f"{safe(tensor)}_s{dimension}"
