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
    word = plain.rstrip("_")  # names with underscores after such a word get one more: no two names become one
    if word in RESERVED or keyword.iskeyword(word) or plain[:1].isdigit() or OWN.fullmatch(word):
        return f"{plain}_"
    return plain


def stride_name(tensor: str, dimension: int) -> str:
    """The name of a stride argument as printed."""
    return f"{safe(tensor)}_s{dimension}"
