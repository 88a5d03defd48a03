"""`sparsec tune`: the best schedule of every kernel of a variant on this machine."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Annotated, Any

import typer

from sparsec.cli.options import AsJson, Dtype, TargetName, Words
from sparsec.cli.output import print_json, say


def tune(
    words: Words,
    target: TargetName = "auto",
    dtype: Dtype = "",
    trials: Annotated[int, typer.Option(help="Configurations per kernel, those of earlier runs counted.")] = 60,
    seconds: Annotated[float, typer.Option(help="Stop after this time; 0 for no limit.")] = 0.0,
    kernel: Annotated[list[str], typer.Option(help="Only this kernel of the plan; may be repeated.")] = [],  # noqa: B006
    seed: Annotated[int, typer.Option(help="Of the random inputs.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Search schedules, admit only those that agree with the oracle, keep what wins beyond noise.

    Every trial is stored as it ends; stop with Ctrl-C and go on later. `sparsec.compile` uses the best from then on.
    """
    from sparsec.autotune import tune as search
    from sparsec.autotune.progress import bar
    from sparsec.cli.setting import setting
    from sparsec.runtime.target import available

    chosen = setting(words, target, dtype)
    available(chosen.compiled.target)
    limits: dict[str, Any] = {"trials": trials, "seconds": seconds or None, "kernels": kernel or None}
    with nullcontext() if as_json else bar() as progress:
        report = search(chosen.compiled, chosen.inputs(seed), progress=progress, **limits)
    if as_json:
        print_json(report.to_dict())
    else:
        say(str(report))
