"""`sparsec tune`: the best schedule of every kernel of a variant on this machine."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sparsec.cli.options import AsJson, Dtype, TargetName, Words
from sparsec.cli.output import print_json, say

if TYPE_CHECKING:
    from sparsec.autotune.job import Outcome
    from sparsec.ir.variant import Variant


def tune(
    words: Words,
    target: TargetName = "auto",
    dtype: Dtype = "",
    trials: Annotated[int, typer.Option(help="Configurations per kernel, those of earlier runs counted.")] = 60,
    seconds: Annotated[float, typer.Option(help="Stop after this time; 0 for no limit.")] = 0.0,
    gradients: Annotated[bool, typer.Option("--gradients", help="The backward kernels too, of every input.")] = False,
    kernel: Annotated[list[str], typer.Option(help="Only this kernel of the plan; may be repeated.")] = [],  # noqa: B006
    documents: Annotated[str, typer.Option(help="Packed calls: the tokens of each document, such as 4096,512,9.")] = "",
    seed: Annotated[int, typer.Option(help="Of the random inputs.")] = 0,
    inputs: Annotated[str, typer.Option(help="An .npz file of real inputs by name; needs --out.")] = "",
    out: Annotated[str, typer.Option(help="A folder for kernels, trials, results.json and report.html.")] = "",
    as_json: AsJson = False,
) -> None:
    """Search schedules, admit only those that agree with the oracle, keep what wins beyond noise.

    Every trial is stored as it ends; stop with Ctrl-C and go on later. `sparsec.compile` uses the best from then on.
    With `--inputs` and `--out`, show every step, time the result beside dense attention and FlexAttention, check it
    against the oracle and leave a report. Exit code 130 where it was interrupted.
    """
    _check_seconds(seconds)
    lengths = _lengths(documents)
    if inputs or out:
        if lengths:
            raise typer.BadParameter("--documents is for random inputs, and --inputs names real ones")
        if seed:
            raise typer.BadParameter("--seed is for random inputs, and --inputs names real ones")
        if gradients:
            raise typer.BadParameter("--gradients does not go with --inputs and --out: leave it, or them, out")
        return _job(words, target, dtype, (trials, seconds or None, tuple(kernel)), _both(inputs, out), as_json)
    from sparsec.autotune import tune as search
    from sparsec.autotune.progress import bar
    from sparsec.cli.setting import setting
    from sparsec.runtime.target import available

    chosen = setting(words, target, dtype)
    available(chosen.compiled.target)
    limits: dict[str, Any] = {"trials": trials, "seconds": seconds or None, "kernels": kernel or None}
    limits["gradients"] = gradients
    if lengths:
        from sparsec.runtime.packed.inputs import packed_inputs

        made = packed_inputs(chosen.compiled, lengths, chosen.dims, chosen.dtype, seed)
        limits["cu_seqlens"] = made.pop("cu_seqlens")
    else:
        made = chosen.inputs(seed)
    with nullcontext() if as_json else bar() as progress:
        report = search(chosen.compiled, made, progress=progress, **limits)
    if as_json:
        print_json(report.to_dict())
    else:
        say(str(report))
    if _interrupted(report.to_dict()):
        raise typer.Exit(INTERRUPTED)


INTERRUPTED = 130
"""What a shell expects of a command that Ctrl-C ended."""


def _check_seconds(seconds: float) -> None:
    from sparsec.autotune.trial import TuneError

    if not seconds >= 0:
        raise TuneError(f"seconds = {seconds:g}: give the time in seconds, or 0 for no limit")


def _lengths(documents: str) -> list[int]:
    """The tokens of each document. Raises BadParameter for what are no whole numbers from 1."""
    words = [word.strip() for word in documents.split(",")] if documents else []
    if not all(word.isdigit() and int(word) for word in words):
        raise typer.BadParameter(f"--documents {documents}: whole numbers from 1 with commas between, as in 4096,512,9")
    return [int(word) for word in words]


def _interrupted(report: Mapping[str, Any]) -> bool:
    """Whether Ctrl-C ended a tuning, within a kernel or before one."""
    within = any(kernel["stopped"] == "interrupted" for kernel in report["kernels"])
    return within or any(note.startswith("interrupted before") for note in report["notes"])


def _both(inputs: str, out: str) -> tuple[Path, Path]:
    if not (inputs and out):
        raise typer.BadParameter("--inputs FILE.npz and --out FOLDER go together")
    return Path(inputs), Path(out)


def _job(
    words: list[str],
    target: str,
    dtype: str,
    limits: tuple[int, float | None, tuple[str, ...]],
    paths: tuple[Path, Path],
    quiet: bool,
) -> None:
    """The main job and the exported module; exit code 1 where the tuned kernels do not agree with the oracle."""
    from dataclasses import asdict

    from sparsec.autotune.job import Limits, run_job
    from sparsec.autotune.job.screen import Screen
    from sparsec.cli.naming import named
    from sparsec.cli.setting import float_dtype

    asked, command = named(words), f"sparsec tune {' '.join(words)}"
    variant, bounds = asked.variant, Limits(*limits)
    outcome = run_job(
        variant, *paths, target=target, dtype=float_dtype(dtype), limits=bounds, command=command, screen=Screen(quiet),
        dims=asked.dims,
    )  # fmt: skip
    module = _module(variant, outcome, paths[1] / outcome.key / f"{variant.name}.py")
    if quiet:
        print_json(asdict(outcome))
    else:
        say(f"{module}: the tuned kernels with a launcher, in one file that does not need sparsec")
    raise typer.Exit(INTERRUPTED if _interrupted(outcome.tuning) else 0 if outcome.right else 1)


def _module(variant: Variant, outcome: Outcome, path: Path) -> Path:
    """The tuned plan as one file."""
    from sparsec.cli.recorded import recorded
    from sparsec.cli.setting import Setting
    from sparsec.runtime.compiled import compile
    from sparsec.runtime.exported.export import export

    chosen = Setting(compile(variant, outcome.target), outcome.dims, outcome.dtype)
    path.write_text(export(chosen.compiled, chosen.dims, chosen.dtype, recorded(chosen)))
    return path
