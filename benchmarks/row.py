"""What is kept of a case that was checked and timed, as JSON and as a short table."""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from sparsec.benchmarks.cases import Case
from sparsec.benchmarks.hardware import Record
from sparsec.benchmarks.timing import Pair
from sparsec.benchmarks.verdict import Verdict

PEAK_SLACK = 0.1
"""How far the predicted peak of memory may lie from the measured one."""


@dataclass(frozen=True, slots=True)
class FormTime:
    """A peer's form: median time and peak bytes, or why it does not count."""

    ms: float | None = None
    peak_bytes: int | None = None
    error: float | None = None
    refused: str = ""


@dataclass(frozen=True, slots=True)
class Row:
    """One case, checked and timed. `peer` is the fastest form; a ratio is its time over ours.

    Attributes:
        ms: of ours; the median of the interleaved rounds where there is a peer, whose times `pair` has.
        predicted_peak_bytes: what `sparsec explain` says that a call holds; `peak_agrees` with `peak_bytes` to 10 %.
        tuning_seconds: that tuning took in this run; None where nothing was tuned.
        half_peak_bytes: at half the length, where growth with the length was asked for.
        gradient_errors: of ours, by input; empty where the case has no backward.
    """

    case: str
    shape: dict[str, object]
    ms: float
    peer: str
    pair: Pair | None
    tflops: float
    peak_bytes: int | None
    predicted_peak_bytes: int | None
    peak_agrees: bool | None
    verdict: Verdict
    forms: dict[str, FormTime]
    hardware: Record
    gradient_errors: dict[str, float]
    tuning_seconds: float | None = field(default=None)
    half_peak_bytes: int | None = field(default=None)


def agrees(predicted: int | None, measured: int | None) -> bool | None:
    """Whether a predicted peak is within 10 % of the measured one; None where either is unknown."""
    if predicted is None or measured is None:
        return None
    return abs(predicted - measured) <= PEAK_SLACK * measured


def shape_of(case: Case) -> dict[str, object]:
    """The case's fields as JSON."""
    return {name: str(value) if isinstance(value, torch.dtype) else value for name, value in asdict(case).items()}


def write_rows(rows: Sequence[Row], path: Path) -> None:
    """Write rows as a JSON list."""
    write_json([asdict(row) for row in rows], path)


def write_json(values: Sequence[Mapping[str, object]], path: Path) -> None:
    """Write JSON values as a list, or one per line where the name ends in ``.jsonl``; the folder is made.

    What was there is replaced at once: a process that is killed leaves the values before, or these.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lined = path.suffix == ".jsonl"
    text = "".join(json.dumps(value) + "\n" for value in values) if lined else json.dumps(list(values), indent=1) + "\n"
    beside = path.with_name(f"{path.name}.{os.getpid()}")
    beside.write_text(text)
    beside.replace(path)


def read_json(path: Path) -> list[dict[str, Any]]:
    """What ``write_json`` wrote; nothing where there is no such file."""
    if not path.exists():
        return []
    text = path.read_text()
    return [json.loads(line) for line in text.splitlines()] if path.suffix == ".jsonl" else json.loads(text)


HEAD = ("case", "ours ms", "peer", "peer ms", "ratio (low to high)", "TFLOP/s", "error", "peak MB", "predicted")


def table_of(rows: Iterable[Mapping[str, object]]) -> list[tuple[str, ...]]:
    """Rows as JSON values -> the lines of a short table under ``HEAD``."""
    return [_line(row) for row in rows]


def aligned(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A table as text whose columns are as wide as they must be: a terminal's width cuts nothing off."""
    every = [tuple(head), *map(tuple, lines)]
    widths = [max(len(line[n]) for line in every) for n in range(len(head))]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in every)


def _line(row: Mapping[str, object]) -> tuple[str, ...]:
    pair, verdict = row["pair"], row["verdict"]
    assert isinstance(verdict, Mapping)
    beside = ("", "", "")
    if isinstance(pair, Mapping):
        spread = f"{pair['ratio']:.2f} ({pair['ratio_low']:.2f} to {pair['ratio_high']:.2f})"
        beside = (str(row["peer"]), f"{pair['peer_ms']:.3f}", spread)
    off = "" if row["peak_agrees"] is not False else " OFF"
    figures = (f"{row['tflops']:.3g}", f"{verdict['error']:.1e}", _megabytes(row["peak_bytes"]))
    return (str(row["case"]), f"{row['ms']:.3f}", *beside, *figures, _megabytes(row["predicted_peak_bytes"]) + off)


def _megabytes(count: object) -> str:
    return f"{count / 1e6:.1f}" if isinstance(count, int) else "–"
