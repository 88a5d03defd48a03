"""Plots of the report: bars of times, predicted beside measured, and the history of the trials."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sparsec.autotune.job.outcome import Contender, KernelTime
from sparsec.autotune.job.svg import cross, dot, line, path, picture, rect, text, turned

WIDTH, LEFT, RIGHT, BAR = 720.0, 210.0, 96.0, 20.0
HEIGHT, TOP, STRIP = 220.0, 14.0, 26.0


def milliseconds(seconds: float) -> str:
    """A time with three digits, in ms or µs."""
    return f"{seconds * 1e3:.3g} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.3g} µs"


def times(contenders: Sequence[Contender]) -> str:
    """Bars of what was timed, and the reason where something was not."""
    longest = max(c.seconds or 0.0 for c in contenders) or 1.0
    parts: list[str] = []
    for n, c in enumerate(contenders):
        y = TOP + n * (BAR + 12)
        name = f"{c.name}, {c.form}" if c.form not in ("", "torch") else c.name
        parts.append(text(LEFT - 10, y + BAR * 0.72, name, anchor="end"))
        if c.seconds is None:
            parts.append(text(LEFT, y + BAR * 0.72, "—", "faint"))
            continue
        width = (WIDTH - LEFT - RIGHT) * c.seconds / longest
        parts.append(
            rect(LEFT, y, max(width, 1), BAR, "own" if "sparsec" in c.name else "peer", milliseconds(c.seconds))
        )
        parts.append(text(LEFT + width + 6, y + BAR * 0.72, milliseconds(c.seconds)))
    return picture(WIDTH, TOP + len(contenders) * (BAR + 12), parts, "time of one call")


def predictions(kernels: Sequence[KernelTime]) -> str:
    """Two bars per kernel, predicted and measured; a tick where its bytes alone would end."""
    longest = max((max(k.predicted_s, k.tuned_s) for k in kernels), default=1.0)
    parts: list[str] = []
    for n, k in enumerate(kernels):
        y, unit = TOP + n * (2 * BAR + 14), (WIDTH - LEFT - RIGHT) / longest
        parts.append(text(LEFT - 10, y + BAR, k.name, anchor="end"))
        for row, (what, seconds, css) in enumerate(
            (("predicted", k.predicted_s, "guess"), ("measured", k.tuned_s, "own"))
        ):
            top = y + row * BAR
            parts.append(rect(LEFT, top, max(unit * seconds, 1), BAR - 3, css, f"{what} {milliseconds(seconds)}"))
            parts.append(text(LEFT + unit * seconds + 6, top + BAR * 0.68, f"{milliseconds(seconds)} {what}"))
        parts.append(line(LEFT + unit * k.floor, y - 3, LEFT + unit * k.floor, y + 2 * BAR, "floor"))
    return picture(WIDTH + 40, TOP + len(kernels) * (2 * BAR + 14), parts, "predicted and measured time of each kernel")


def history(kernel: Mapping[str, Any]) -> str:
    """Trials of one kernel in order: each one's time over the default's, the best so far, and what was rejected."""
    trials = [t for t in kernel["trials"] if t["state"] != "lost"]
    timed = [t for t in trials if t["ratio"] is not None]
    top = min(max((t["ratio"] for t in timed), default=1.0), 4.0) * 1.05
    span, floor = WIDTH - 70.0, HEIGHT - STRIP

    def x(n: int) -> float:
        return 50.0 + span * (n + 0.5) / max(len(trials), 1)

    def y(ratio: float) -> float:
        return TOP + (floor - TOP) * (1 - min(ratio, top) / top)

    parts = [*_axes(top, y, floor), turned(10, (TOP + floor) / 2, "time / default")]
    best, steps = 1.0, [(50.0, y(1.0))]
    for n, t in enumerate(trials):
        if t["ratio"] is None:
            parts.append(cross(x(n), floor + 12, 3, "bad", f"trial {t['number']}: {t['why']}: {t['reason']}"))
            continue
        won = bool(t["won"]) and n > 0
        parts.append(dot(x(n), y(t["ratio"]), 4 if won else 2.6, "own" if won else "peer", _said(t)))
        if won:
            steps += [(x(n), y(best)), (x(n), y(t["ratio"]))]
            best = t["ratio"]
    parts.append(path([*steps, (WIDTH - 20, y(best))], "best"))
    parts.append(text(WIDTH - 20, y(best) - 6, f"best {best:.2f}", anchor="end"))
    if len(timed) < len(trials):
        parts.append(text(46, floor + 16, "rejected", "faint", "end"))
    return picture(WIDTH, HEIGHT, parts, f"trials of {kernel['kernel']}")


def _axes(top: float, y: Any, floor: float) -> list[str]:
    parts = [line(50, floor, WIDTH - 20, floor, "axis")]
    ticks = [t for t in (0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0) if t <= top]
    for tick in ticks if len(ticks) < 7 else [t for t in ticks if t not in (0.25, 0.75)]:
        parts.append(line(50, y(tick), WIDTH - 20, y(tick), "even" if tick == 1.0 else "grid"))
        parts.append(text(44, y(tick) + 4, f"{tick:g}", anchor="end"))
    return parts


def _said(t: Mapping[str, Any]) -> str:
    seconds = f", {milliseconds(t['seconds'])}" if t["seconds"] is not None else ""
    return f"trial {t['number']}: {t['ratio']:.3f} of the default's time{seconds}"
