"""`sparsec check`: every link of the chain of trust on random inputs of a small size."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from sparsec.cli.options import AsJson, Dtype, TargetName, Words
from sparsec.cli.output import print_json, say

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sparsec.cli.setting import Setting
    from sparsec.testing.whole.chain import Link

SMALL = {"T": 67, "B": 1, "H": 4, "HKV": 2, "D": 32, "DV": 32, "DR": 32}
"""Small, and a prime number of tokens, so that every kind of ragged tile occurs."""

LONGER = (131, 263, 521)
"""Lengths that are tried in turn where a top-k would have nothing to leave out."""


def check(
    words: Words,
    target: TargetName = "interpreter",
    dtype: Dtype = "",
    seed: Annotated[int, typer.Option(help="Of the random inputs.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Parse, verify, plan and run a variant, and hold each step to the fp64 oracle; exit code 1 where one is wrong.

    By default the tile interpreter runs the kernels, with true rounding and no compiler; `--target cpu` or `cuda` runs
    the compiled ones.
    """
    from sparsec.runtime.target import available
    from sparsec.testing.inputs.idle import idle
    from sparsec.testing.whole.chain import links

    chosen = _chosen(words, target, dtype)
    available(chosen.compiled.target)
    found: list[Link] = []
    for link in links(chosen.compiled, chosen.inputs(seed)):
        found.append(link)
        if not as_json:
            say(f"{'ok   ' if link.ok else 'WRONG'} {link.upper} = {link.lower}: {link.sentence}")
    ok, note = all(link.ok for link in found), idle(chosen.compiled.variant, chosen.inputs(seed), chosen.dims)
    if as_json:
        links_ = [asdict(link) for link in found]
        print_json({"ok": ok, "dims": chosen.dims, "dtype": chosen.dtype, "links": links_, "note": note})
    else:
        say(_verdict(chosen, found) + (f"\nnote: {note}" if note else ""))
    raise typer.Exit(0 if ok else 1)


def _chosen(words: Sequence[str], target: str, dtype: str) -> Setting:
    """The variant at the dims that are asked for; if the length is left open, one that puts choices to the test."""
    from sparsec.cli.setting import setting
    from sparsec.testing.inputs.idle import choices

    first = setting(words, target, dtype, SMALL)
    if any(word.partition("=")[0] in ("T", "TQ", "TK") for word in words):
        return first
    for length in (SMALL["T"], *LONGER):
        found = setting(words, target, dtype, SMALL | {"T": length})
        if not [*choices(found.compiled.variant, found.dims)]:
            return found
    return first


def _verdict(chosen: Setting, found: list[Link]) -> str:
    name, target = chosen.compiled.variant.name, chosen.compiled.target.name
    dims = " ".join(f"{n}={d}" for n, d in sorted(chosen.dims.items()) if n != "q_offset")
    wrong = [link for link in found if not link.ok]
    if wrong:
        return f"{name} is WRONG on {target} ({chosen.dtype}, {dims}): first at {wrong[0].lower}, {wrong[0].sentence}"
    return f"{name} is right on {target} ({chosen.dtype}, {dims}): {len(found)} comparisons agree"
