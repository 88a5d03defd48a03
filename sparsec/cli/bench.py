"""`sparsec bench`: generated kernels beside their peers, timed in turn, after the oracle has checked them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from sparsec.cli.options import AsJson
from sparsec.cli.output import print_json, say

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from sparsec.benchmarks.session import Asked

Cases = Annotated[
    list[str],
    typer.Argument(metavar="[CASE]…", help="Cases or groups of them (presets with --crossover); by default all."),
]
Path_ = Annotated[str, typer.Option("--out", help="Write the rows to this file as JSON; .jsonl: a row per line.")]
Trials = Annotated[int, typer.Option(help="Tune each kernel with so many trials first; 0: default or records.")]
Skip = Annotated[list[str], typer.Option(help="Leave out a form of a peer, such as flex/tuned.")]
Apart = Annotated[bool, typer.Option(help="A process per case, so that one that crashes stops no other.")]
Crossover = Annotated[bool, typer.Option("--crossover", help="Where each preset beats dense attention.")]
Events = Annotated[
    bool, typer.Option("--events", help="The time of each kernel of a call, and the bytes it must move.")
]
Small = Annotated[bool, typer.Option("--small", help="Each case at a few tokens on the CPU: does it run, is it right?")]
Heads = Annotated[str, typer.Option(help="With --crossover: heads of queries and of keys, such as 16,16.")]
StepLimit = Annotated[float, typer.Option(help="With --crossover: seconds of a step after which lengths end.")]
Limit = Annotated[float, typer.Option(help="Seconds after which a case that runs apart is given up; 0: none.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on from the rows that --out has: only what is not there.")]
Ahead = Annotated[
    int, typer.Option(help="Build all kernels before any is timed, so many cases at once; 0: as they come.")
]
BuildOnly = Annotated[bool, typer.Option("--build-only", help="Build the kernels; check and time nothing.")]


def bench(
    cases: Cases = [],  # noqa: B006
    list_cases: Annotated[bool, typer.Option("--list", help="Only list the cases.")] = False,
    crossover: Crossover = False,
    events: Events = False,
    rounds: Annotated[int, typer.Option(help="Interleaved rounds per case.")] = 5,
    trials: Trials = 0,
    skip: Skip = [],  # noqa: B006
    apart: Apart = True,
    limit: Limit = 0.0,
    step_limit: StepLimit = 10.0,
    heads: Heads = "",
    small: Small = False,
    ahead: Ahead = 0,
    build_only: BuildOnly = False,
    out: Path_ = "",
    resume: Resume = False,
    as_json: AsJson = False,
) -> None:
    """Time sparsec beside the fastest form of each peer; a row only where the check against the oracle passed.

    `--crossover`: the shortest length, doubling from 1K, at which forward and backward of each preset are quicker than
    dense causal attention (cuDNN on a GPU). `--events`: each kernel of a call, by CUDA events, without a peer.
    """
    from sparsec.benchmarks.session import Asked, rows_of

    if list_cases:
        return _list(as_json)
    if (crossover and events) or (resume and not out):
        raise typer.BadParameter("--crossover and --events are two tables, and --resume goes on from --out FILE")
    report: Callable[[str], None] = (lambda text: None) if as_json else say
    names = _presets(cases) if crossover else _names(cases)
    table = "crossover" if crossover else "events" if events else "peers"
    asked = Asked(table, rounds, trials, tuple(skip), step_limit, heads, small, apart, limit, ahead, out, resume)
    if build_only:
        from sparsec.benchmarks.ahead import build

        return build(names, asked.setting if crossover else None, report)
    _show(rows_of(names, asked, report), names, asked, as_json)


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


def _show(rows: Sequence[Mapping[str, object]], names: Sequence[str], asked: Asked, as_json: bool) -> None:
    from sparsec.benchmarks.session import text_of

    if as_json:
        print_json(rows)
    elif rows:
        say(f"\n{text_of(rows, asked.table)}")
    if len(rows) < len(names):
        raise typer.Exit(1)
