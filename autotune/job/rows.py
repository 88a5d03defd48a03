"""The one table: a row per question, a column per variant; the terminal and the report print the same cells."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from sparsec.autotune.job.machine import busy
from sparsec.autotune.job.outcome import Contender, Outcome
from sparsec.autotune.job.plots import milliseconds


def rows(outcomes: Sequence[Outcome]) -> list[tuple[str, ...]]:
    """(question, answer for each variant) in reading order."""
    return [(name, *(answer(o) for o in outcomes)) for name, answer in ROWS.items()]


def _time(position: int) -> Callable[[Outcome], str]:
    def answer(o: Outcome) -> str:
        found, reference = o.contenders[position], o.contenders[0].seconds
        if found.seconds is None:
            return found.reason
        form = f" ({found.form})" if found.form not in ("", "torch") else ""
        faster = "" if not position or not reference else f", {reference / found.seconds:.2f} times dense"
        return f"{milliseconds(found.seconds)}{form}{faster}"

    return answer


def _tuned(o: Outcome) -> str:
    return f"{_time(3)(o)} (the defaults stay)" if o.defaults_stay else _time(3)(o)


def _error(o: Outcome) -> str:
    return f"{o.error:.1e} (at most {o.bounds[0]:.1e})" + ("" if o.right else "  WRONG")


def _tile(o: Outcome) -> str:
    return f"{o.tile:.1e} (at most {o.bounds[1]:.1e})"


def _mass(o: Outcome) -> str:
    if not o.mass:
        return "it reads no tokens"
    worst = f"head {o.mass['worst_head']:.0f}: {o.mass['worst']:.1%}"
    return f"mean {o.mass['mean']:.1%}, 5th percentile {o.mass['p5']:.1%}, worst {worst}"


def _predicted(o: Outcome) -> str:
    said = f"{milliseconds(o.predicted_s)}, off by a factor of {o.off_by:.2f}"
    if not busy(o.load) or o.processor_s is None:
        return said
    return f"{said}; a call took {milliseconds(o.processor_s)} of each core's time"


def _peak(position: int) -> Callable[[Outcome], str]:
    def answer(o: Outcome) -> str:
        return megabytes(o.contenders[position])

    return answer


def _own_peak(o: Outcome) -> str:
    return f"predicted {o.predicted_peak / 1e6:.1f} MB, measured {megabytes(o.contenders[-1])}"


def megabytes(found: Contender) -> str:
    """Peak memory, or a dash where it was not measured."""
    return "—" if found.peak is None else f"{found.peak / 1e6:.1f} MB"


ROWS: dict[str, Callable[[Outcome], str]] = {
    "dense SDPA, causal": _time(0),
    "FlexAttention, compiled": _time(1),
    "sparsec, default schedules": _time(2),
    "sparsec, tuned": _tuned,
    "predicted for tuned": _predicted,
    "error against fp64": _error,
    "  in the worst 64 rows": _tile,
    "dense mass kept": _mass,
    "peak memory, tuned": _own_peak,
    "  of dense SDPA": _peak(0),
}
