"""`sparsec bench`: generated kernels beside their peers, timed in turn, after the oracle has checked them."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sparsec.cli.options import AsJson
from sparsec.cli.output import print_json, say

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

Cases = Annotated[
    list[str],
    typer.Argument(metavar="[CASE]…", help="Cases or groups of them (presets with --crossover); by default all."),
]
Path_ = Annotated[str, typer.Option("--out", help="Write the rows to this file as JSON.")]
Trials = Annotated[int, typer.Option(help="Tune each kernel with so many trials first; 0: default or records.")]
Skip = Annotated[list[str], typer.Option(help="Leave out a form of a peer, such as flex/tuned.")]
Apart = Annotated[bool, typer.Option(help="A process per case, so that one that crashes stops no other.")]
Crossover = Annotated[bool, typer.Option("--crossover", help="Where each preset beats dense attention.")]
Small = Annotated[bool, typer.Option("--small", help="Each case at a few tokens on the CPU: does it run, is it right?")]
StepLimit = Annotated[float, typer.Option(help="With --crossover: seconds of a step after which lengths end.")]
Limit = Annotated[float, typer.Option(help="Seconds after which a case that runs apart is given up; 0: none.")]


def bench(
    cases: Cases = [],  # noqa: B006
    list_cases: Annotated[bool, typer.Option("--list", help="Only list the cases.")] = False,
    crossover: Crossover = False,
    rounds: Annotated[int, typer.Option(help="Interleaved rounds per case.")] = 5,
    trials: Trials = 0,
    skip: Skip = [],  # noqa: B006
    apart: Apart = True,
    limit: Limit = 0.0,
    step_limit: StepLimit = 10.0,
    small: Small = False,
    out: Path_ = "",
    as_json: AsJson = False,
) -> None:
    """Time sparsec beside the fastest form of each peer; a row only where the check against the oracle passed.

    `--crossover`: the shortest length, doubling from 1K, at which forward and backward of each preset are quicker than
    dense causal attention (cuDNN on a GPU).
    """
    if list_cases:
        return _list(as_json)
    report: Callable[[str], None] = (lambda text: None) if as_json else say
    names = _presets(cases) if crossover else _names(cases)
    rows: Sequence[dict[str, object]]
    if apart and len(names) > 1:
        from sparsec.benchmarks.apart import rows_apart

        options = [f"--rounds={rounds}", f"--trials={trials}", *(f"--skip={name}" for name in skip)]
        options += ["--crossover", f"--step-limit={step_limit}"] if crossover else ["--small"] if small else []
        rows = rows_apart(names, options, limit, report, lambda rows: _write(rows, out))
    elif crossover:
        from sparsec.benchmarks.crossover import crossovers

        found = crossovers(names, rounds=rounds, trials=trials, longest=step_limit, report=report)
        rows = [asdict(row) for row in found]
    else:
        from sparsec.benchmarks.own import own
        from sparsec.benchmarks.run import run_cases

        made = run_cases(names, lambda c, x: own(c, x, trials), rounds=rounds, skip=skip, report=report, as_small=small)
        rows = [asdict(row) for row in made]
    _show(rows, names, crossover, out, as_json)


def _list(as_json: bool) -> None:
    from sparsec.benchmarks.registry import CASES, GROUPS

    if as_json:
        return print_json([*CASES])
    lines = [f"{name} ({case.device})" for name, case in CASES.items()]
    return say("\n".join([*lines, "", *(f"{name}: {len(cases)} of them" for name, cases in GROUPS.items())]))


def _names(cases: Sequence[str]) -> list[str]:
    """The cases that were asked for, or all of the device that is here."""
    import torch

    from sparsec.benchmarks.registry import cases_named, cases_on

    here = "cuda" if torch.cuda.is_available() else "cpu"
    return [case.name for case in (cases_named(tuple(cases)) if cases else cases_on(here))]


def _presets(names: Sequence[str]) -> list[str]:
    """The presets that were asked for, each known to exist, or all that are sparse."""
    from sparsec.benchmarks.crossover import default_presets
    from sparsec.frontends.preset import preset

    for name in names:
        preset(name)
    return list(names) or default_presets()


def _show(rows: Sequence[Mapping[str, object]], names: Sequence[str], crossover: bool, out: str, as_json: bool) -> None:
    from sparsec.benchmarks import crossover as crossing
    from sparsec.benchmarks.row import HEAD, aligned, table_of

    _write(rows, out)
    if as_json:
        print_json(rows)
    elif rows:
        say("")
        say(aligned(crossing.HEAD, map(crossing.line, rows)) if crossover else aligned(HEAD, table_of(rows)))
    if len(rows) < len(names):
        raise typer.Exit(1)


def _write(rows: Sequence[Mapping[str, object]], out: str) -> None:
    from sparsec.benchmarks.row import write_json

    if out:
        write_json(rows, Path(out))
