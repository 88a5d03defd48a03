"""Which scans have a chunk form under which schedules."""

from __future__ import annotations

from sparsec.lower.scan.chunk.parts import Chunked, needs_keyed, power
from sparsec.lower.scan.runs import Runs
from sparsec.plan.states.scan_specs import Operand, Writes
from sparsec.tile.schedule import Schedule, ScheduleError

OWN = "decays per key channel, erase vectors and reads of the undecayed state"
"""What needs the form of ``keyed``."""
SURPRISED = f"{OWN} have no chunk form that says what a write was surprised by"


def refusal(writes: Writes, schedule: Schedule) -> str | None:
    """Why a scan has no chunk form here, in a sentence; None where it has."""
    if writes.rule not in ("additive", "delta") or writes.decay_kind not in ("none", "scalar", "key"):
        return f"rule {writes.rule!r} with decay {writes.decay_kind!r} has no chunk form; use order 'token'"
    if odd := [e for e in writes.erase or () if not meets(e, writes)]:
        return f"{odd[0].name} is {odd[0].dtype}, keys are {writes.k.dtype}; the chunk form multiplies equal dtypes"
    if writes.route is not None:
        return "chosen parts have no chunk form; use order 'token' or 'mask'"
    exact = writes.rule == "delta" and writes.v.dtype == "float32"  # values that no product takes as they are
    if writes.k.dtype != writes.v.dtype and not exact and not (needs_keyed(writes) and meets(writes.k, writes)):
        return f"keys are {writes.k.dtype} and values {writes.v.dtype}; the chunk form multiplies equal dtypes"
    chunk = schedule.rows
    if chunk & (chunk - 1) or not 16 <= chunk <= 256:
        return f"chunks of {chunk} tokens; use 16, 32, 64, 128 or 256"
    delta = writes.rule == "delta" or writes.erase is not None
    if delta and chunk > 64:
        return f"chunks of {chunk} tokens; the triangular solve takes up to 64"
    if delta and schedule.splits > 1 and schedule.value_block > power(writes.rows):
        wide = f"{schedule.value_block} columns per program and {writes.rows} rows"
        return f"{wide}; a segment's transition has a column per row: use value_block {power(writes.rows)}"
    if delta and schedule.splits > 1 and power(writes.rows) > 128:
        return f"segments of {writes.rows} rows; their transitions do not fit a program: use splits 1"
    return None


def meets(operand: Operand, writes: Writes) -> bool:
    """Whether products take an operand: in the dtype of the keys, or in fp32 where it fades before it is rounded."""
    return operand.dtype in ((writes.half, "float32") if needs_keyed(writes) else (writes.k.dtype,))


def checked(name: str, writes: Writes, schedule: Schedule, runs: Runs | None = None) -> Chunked:
    """The scan in chunks; ScheduleError where there is no such form."""
    if sentence := refusal(writes, schedule):
        raise ScheduleError(sentence)
    return Chunked(name, writes, schedule, runs)
