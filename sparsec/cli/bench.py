"""`sparsec bench`: generated kernels beside their peers, timed in turn, after the oracle has checked them."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sparsec.cli.options import AsJson
from sparsec.cli.output import print_json, say

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from sparsec.benchmarks.cases import Case

Cases = Annotated[list[str], typer.Argument(metavar="[CASE]…", help="Cases; by default all that this machine can run.")]
Path_ = Annotated[str, typer.Option("--out", help="Write the rows to this file as JSON.")]


def bench(
    cases: Cases = [],  # noqa: B006
    list_cases: Annotated[bool, typer.Option("--list", help="Only list the cases.")] = False,
    rounds: Annotated[int, typer.Option(help="Interleaved rounds per case.")] = 5,
    trials: Annotated[int, typer.Option(help="Tune each kernel with so many trials first; 0: default or records.")] = 0,
    skip: Annotated[list[str], typer.Option(help="Leave out a form of a peer, such as flex/tuned.")] = [],  # noqa: B006
    out: Path_ = "",
    as_json: AsJson = False,
) -> None:
    """Time sparsec beside the fastest form of each peer; a row only where the check against the oracle passed."""
    import torch

    from sparsec.benchmarks.registry import CASES, cases_named, cases_on
    from sparsec.benchmarks.run import run_cases, write_rows

    here = "cuda" if torch.cuda.is_available() else "cpu"
    names = cases or [case.name for case in cases_on(here)]
    if list_cases:
        return print_json([*CASES]) if as_json else say("\n".join(f"{n} ({c.device})" for n, c in CASES.items()))
    cases_named(names)
    report = (lambda text: None) if as_json else say
    rows = run_cases(names, lambda case, inputs: ours(case, inputs, trials), rounds=rounds, skip=skip, report=report)
    if out:
        write_rows(rows, Path(out))
    if as_json:
        print_json([asdict(row) for row in rows])
    if len(rows) < len(names):
        raise typer.Exit(1)


def ours(case: Case, inputs: dict[str, Tensor], trials: int) -> Callable[[], Tensor]:
    """The case's variant compiled on the case's device, tuned if asked: a call without arguments."""
    from sparsec.autotune import tune
    from sparsec.benchmarks.step import LEARNED, Step, leaves_of
    from sparsec.frontends.preset import preset
    from sparsec.runtime.compiled import compile

    knobs: dict[str, Any] = dict(case.knobs)
    compiled = compile(preset(case.preset, **knobs), "cuda" if case.device == "cuda" else "cpu")
    if trials:
        tune(compiled, inputs, trials=trials, gradients=LEARNED if case.train else False)
    leaves = leaves_of(case, inputs) if case.train else {}
    given = inputs | leaves

    def run() -> Tensor:
        result = compiled(None, **given)
        assert not isinstance(result, tuple), "cases have one output"
        return result

    return Step(case, run, leaves) if case.train else run
