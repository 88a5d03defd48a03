"""Names in printed source: those of the program, kept clear of words that TVMScript needs."""

from __future__ import annotations

import keyword
import re

RESERVED = frozenset({"T", "I", "R", "range", "task"})


def safe(name: str) -> str:
    """The name of a tensor or parameter as printed; lower-case names ending in a digit belong to the printer."""
    plain = re.sub(r"\W", "_", name)
    if plain in RESERVED or keyword.iskeyword(plain) or plain[:1].isdigit() or re.fullmatch(r"[a-z_0-9]*\d", plain):
        return f"{plain}_"
    return plain


def stride_name(tensor: str, dimension: int) -> str:
    """The name of a stride argument as printed."""
    return f"{safe(tensor)}_s{dimension}"
