"""The report: one HTML file without a network, made from the outcomes and the kernels beside it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from html import escape
from pathlib import Path
from typing import Any

from sparsec.autotune.job import plots
from sparsec.autotune.job.machine import busy
from sparsec.autotune.job.outcome import Contender, Outcome
from sparsec.autotune.job.rows import rows
from sparsec.autotune.job.style import STYLE


def page(outcomes: Sequence[Outcome], folder: Path) -> str:
    """The report of every outcome; ``folder`` holds the kernels of each under its key."""
    names = ", ".join(o.name for o in outcomes)
    machines = " · ".join(dict.fromkeys(f"{o.target}, {o.dtype}, {_dims(o)}, {o.machine}" for o in outcomes))
    parts = [
        f"<h1>sparsec: {escape(names)}</h1>",
        f"<p class=where>{escape(machines)}</p>",
        _table(outcomes),
        *(_section(o, folder / o.key) for o in outcomes),
    ]
    title = f"<title>sparsec: {escape(names)}</title>"
    head = f"<meta charset=utf-8><meta name=viewport content='width=device-width'>{title}<style>{STYLE}</style>"
    return f"<!doctype html>\n<html lang=en><head>{head}</head><body>{''.join(parts)}</body></html>\n"


def _dims(o: Outcome) -> str:
    return " ".join(f"{n}={size}" for n, size in o.dims.items() if n != "q_offset")


def _table(outcomes: Sequence[Outcome]) -> str:
    head = "".join(f"<th>{escape(o.name)}</th>" for o in outcomes)
    lines = "".join(
        f"<tr{' class=own' if name == 'sparsec, tuned' else ''}><th>{escape(name.strip())}</th>"
        + "".join(f"<td>{escape(cell)}</td>" for cell in cells)
        + "</tr>"
        for name, *cells in rows(outcomes)
    )
    return f"<div class=scroll><table><thead><tr><th></th>{head}</tr></thead><tbody>{lines}</tbody></table></div>"


def _section(o: Outcome, folder: Path) -> str:
    return "".join([
        f"<h2>{escape(o.name)}</h2><p class=where><code>{escape(o.command)}</code></p>",
        _figure("Time of one call, all taken in turn.", plots.times(_labelled(o)), _reasons(o)),
        _notes(busy(o.load)),
        '<div class="row">', *(_figure(p.caption, p.svg) for p in o.pictures), "</div>",
        "<h3>Tuning</h3>", f"<p>{escape(_tuning(o))}</p>", *_trials(o),
        "<h3>Predicted and measured</h3>", _prediction(o),
        "<h3>From the declaration to kernels</h3>", _notes(o.notes),
        _code("Declaration", o.declaration, opened=True),
        *(_code(f"Pass {name}", text or "changes nothing", "diff", bool(text)) for name, text in o.passes),
        _code("Plan", o.plan, opened=True), *_sources(folder),
    ])  # fmt: skip


def _figure(caption: str, svg: str, more: str = "") -> str:
    return f"<figure>{svg}<figcaption>{escape(caption)}{more}</figcaption></figure>"


def _labelled(o: Outcome) -> list[Contender]:
    """The contenders; the tuned plan says where its schedules are the defaults."""
    *others, tuned = o.contenders
    return [*others, replace(tuned, name=f"{tuned.name} (the defaults stay)") if o.defaults_stay else tuned]


def _reasons(o: Outcome) -> str:
    return "".join(f" {escape(c.name)}: {escape(c.reason)}." for c in o.contenders if c.seconds is None)


def _tuning(o: Outcome) -> str:
    tried = sum(t["state"] != "lost" for k in o.tuning["kernels"] for t in k["trials"])
    return f"{tried} trials in {o.tuning['seconds']:.0f} s; {o.tuning['summary']}."


def _trials(o: Outcome) -> Iterable[str]:
    for kernel in o.tuning["kernels"]:
        changed = ", ".join(f"{n} = {v}" for n, v in kernel["changed"].items()) or "the default schedule stays"
        stopped = f" Stopped early: {kernel['stopped']}." if kernel["stopped"] else ""
        legend = " Blue dots became the best; × were rejected, and say why under the pointer."
        yield _figure(f"{kernel['kernel']}: {changed}.{legend}{stopped}", plots.history(kernel))


def _prediction(o: Outcome) -> str:
    caption = (
        f"The cost model says {plots.milliseconds(o.predicted_s)} for the tuned plan; a call takes "
        f"{plots.milliseconds(o.seconds)}, a factor of {o.off_by:.2f}. The tick is the time that the fewest bytes need."
    )
    return _figure(caption, plots.predictions(o.kernels))


def _notes(notes: Sequence[str]) -> str:
    return "".join(f"<p class=where>{escape(note)}.</p>" for note in notes)


def _code(title: str, text: str, kind: str = "", opened: bool = False) -> str:
    body = _coloured(text) if kind == "diff" else escape(text)
    return f"<details{' open' if opened else ''}><summary>{escape(title)}</summary><pre>{body}</pre></details>"


def _coloured(diff: str) -> str:
    kinds: dict[str, Any] = {"+": "added", "-": "removed", "@": "faint"}
    marked = ((kinds.get(line[:1], ""), escape(line)) for line in diff.splitlines())
    return "\n".join(f"<span class={kind}>{line}</span>" if kind else line for kind, line in marked)


def _sources(folder: Path) -> Iterable[str]:
    for path in sorted((folder / "kernels" / "tuned").glob("*.py")):
        yield _code(f"Kernel {path.stem}, tuned", path.read_text())
