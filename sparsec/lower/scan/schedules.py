"""How scans are made: by the token recurrence; on GPUs, in half precision, chunk by chunk where that is possible."""

from __future__ import annotations

from dataclasses import replace

from sparsec.lower import descriptors
from sparsec.lower.lowered import Lowered
from sparsec.lower.scan import interleaved, shared
from sparsec.lower.scan.cell import padded
from sparsec.lower.scan.chunk import back as chunk_back
from sparsec.lower.scan.chunk import forward as chunk
from sparsec.lower.scan.chunk import gradient as chunk_grad
from sparsec.lower.scan.chunk.parts import needs_keyed
from sparsec.lower.scan.sorted import lower as lower_sorted
from sparsec.lower.scan.sorted import spec as sort
from sparsec.lower.scan.token import forward as token
from sparsec.lower.scan.token import gradient as token_grad
from sparsec.lower.scan.token import one_token, step
from sparsec.plan.states.scan_specs import Scan, ScanGrad, Writes
from sparsec.tile.schedule import Schedule, ScheduleError

HELD_BYTES = 2**19
FEW = 8
"""Parts of a bank that the tuner may let meet every token."""
_PROGRAMS = 256
"""Of four warps, side by side."""
_TALLEST = 128
"""Rows of a state of which 64 columns fit the registers of a program."""

Choices = dict[str, tuple[object, ...]]
COLUMNS, WARPS = (16, 32, 64, 128), (1, 2, 4, 8)
"""The space of steps of one token: columns of a program, and its warps, where they fill each other."""

_CHUNKED: Choices = {
    "order": ("chunk", "token"), "rows": (32, 64), "value_block": (16, 32, 64, 128), "splits": (1, 2, 4, 8, 16),
    "warps": (2, 4, 8), "stages": (1, 2, 3), "descriptors": (False, True),
}  # fmt: skip


def lower(spec: Scan, schedule: Schedule) -> Lowered:
    """The programs of a scan."""
    _check(spec, schedule)
    if spec.writes.steps > 1:
        return interleaved.lower(spec, schedule, lower)
    if schedule.order == step.ORDER:
        return step.lower(spec, schedule)
    if schedule.order != "chunk":
        return token.lower(spec, schedule)
    if shared.groups(spec):
        return shared.lower(spec, schedule, lower)
    return chunk.lower(spec, schedule) if spec.writes.route is None else lower_sorted.lower(spec, schedule)


def lower_grad(spec: ScanGrad, schedule: Schedule) -> Lowered:
    """The programs of a scan's adjoint."""
    _check(spec.forward, schedule)
    if spec.forward.writes.steps > 1:
        return interleaved.lower_grad(spec, schedule, lower_grad)
    if schedule.order != "chunk":
        return token_grad.lower(spec, schedule)
    if shared.groups_back(spec):
        return shared.lower_grad(spec, schedule, lower_grad)
    if spec.forward.writes.route is not None:
        return lower_sorted.lower_grad(spec, schedule)
    return chunk_grad.lower(spec, schedule)


def _check(spec: Scan, schedule: Schedule) -> None:
    if schedule.order == one_token.ORDER:
        raise ScheduleError("order 'one_token' is for decode steps of one token; a call may have more")
    if schedule.order == "mask" and spec.writes.route is None:
        raise ScheduleError("every token writes the only part; order 'mask' is for banks with a route")
    if schedule.order == "chunk" and spec.writes.route is not None and shared.groups(spec):
        raise ScheduleError(
            "states of a bank with a route that share keys or queries have no chunk form: use order 'token'"
        )


def in_chunks(spec: Scan, target: str) -> Schedule | None:
    """The schedule of the chunk form on a GPU: programs that fill it for one sequence; None without a form."""
    one, found = _alone(spec), _one_group(spec, target)
    return _two_groups(spec, found) if found is not None and chunk.refusal(one, found) is None else None


def in_chunks_back(spec: ScanGrad, target: str) -> Schedule | None:
    """As ``in_chunks``, for the adjoint, which reads what its forward made."""
    one = sort.gradient(spec) if spec.forward.writes.route is not None else shared.each_back(spec)
    found = _one_group(spec.forward if spec.forward.writes.route is not None else one.forward, target)
    if found is None or chunk.refusal(_alone(spec.forward), found) or chunk_back.refusal(one):
        return None
    return replace(found, descriptors=found.descriptors and not needs_keyed(spec.forward.writes), keep=True)


def _alone(spec: Scan) -> Scan:
    return shared.each(spec) if spec.writes.route is None else sort.scan(spec)


def _one_group(spec: Scan, target: str) -> Schedule | None:
    """One group of four warps has 64 value columns; some 256 programs side by side."""
    w = spec.writes
    halves = target.startswith("triton") and w.half == "bfloat16"  # states outgrow fp16
    if not halves or (w.route is not None and (not w.route.freeze or shared.groups(spec))):
        return None
    rows, cols = padded(w.rows), padded(w.cols)
    tall, delta = rows > _TALLEST, w.rule == "delta" or w.erase is not None
    columns = min(32 if tall else 64, cols, rows if delta else 64)
    splits = 1 if tall and delta else _splits(w, columns)
    tma = descriptors.pay(target, w.k.dtype, w.rows, w.cols) and (w.steps == 1 or (delta and not needs_keyed(w)))
    found = Schedule("chunk", 64, value_block=columns, splits=splits, warps=4, descriptors=tma, exact=_exact(w))
    return replace(found, stages=1 if w.erase is not None else 2)  # two do not fit with what erases


def _exact(w: Writes) -> bool:
    """Whether rounding what answers come back into would cost too much: bf16's bound is 3e-3.

    Without a decay that takes it along, 2.8e-3 to 3.7e-3 with rates of 1; of 64 key dims that fade by themselves, and
    slowly, 3.6e-3. With 128 dims those are held to decays that are not as slow.
    """
    if needs_keyed(w):
        return _rounds(w) and w.rows < _TALLEST
    return _unfaded(w) and (w.rows != _TALLEST or w.beta is None)


def _unfaded(w: Writes) -> bool:
    """Whether no decay takes along what was rounded."""
    return w.rule == "delta" and w.decay is None


def _two_groups(spec: Scan, found: Schedule) -> Schedule:
    """Two groups of four warps share keys and queries, 128 value columns, which leaves room for a stage more.

    Delta rules that do not fade per channel are no faster so, for want of registers; banks with a route were not tried.
    """
    w = spec.writes
    crowded = w.rule == "delta" and not needs_keyed(w)
    if crowded or w.route is not None or not found.descriptors or w.rows != 128 or w.cols % 128:
        return replace(found, descriptors=found.descriptors and w.erase is None)
    stages = 2 if w.rule == "delta" or w.erase is not None else 3
    splits = _splits(w, 128, _PROGRAMS // 2)
    return replace(found, value_block=128, splits=splits, warps=8, stages=stages)


def _splits(w: Writes, columns: int, programs: int = _PROGRAMS) -> int:
    """Segments of one sequence; of a batch the launch takes fewer."""
    wanted = max(1, programs // (w.heads * -(-w.cols // columns)))
    return min(16, 1 << (wanted.bit_length() - 1))


def _checked(w: Writes) -> bool:
    """Whether the chunk form is known to be right and fast on a GPU without a search; others are left to the tuner."""
    if w.cols < 64 or w.cols % 64:
        return False
    if needs_keyed(w) or _unfaded(w):
        return w.rows in (64, 128) and (w.decay_kind == "key" or not needs_keyed(w))
    return w.rows in (64, 128, 256) or (w.rows == 1 and w.rule == "additive")


def token_form(spec: Scan | ScanGrad, schedule: Schedule) -> Schedule:
    """A schedule of the token recurrence in place of one of chunks, where those have no form, or of one token."""
    if schedule.order not in ("chunk", one_token.ORDER):
        return schedule
    w = spec.writes if isinstance(spec, Scan) else spec.forward.writes
    return _token(w) if isinstance(spec, Scan) else _token_back(w)


def step_form(spec: Scan, found: Schedule, target: str) -> Schedule:
    """A schedule for a few tokens in place of a forward's: on a GPU 64 elements of a state per thread."""
    return _step(spec.writes, step.ORDER) if target.startswith("triton") else token_form(spec, found)


def one_token_form(spec: Scan, target: str) -> Schedule:
    """A schedule for one token."""
    if target.startswith("triton"):
        return _step(spec.writes, one_token.ORDER)
    return Schedule(order=one_token.ORDER, lanes=("e", "d"), split_dims=False)


def fills(spec: Scan, found: Schedule) -> bool:
    """Whether a thread has neither too few elements to load in whole vectors nor more than registers hold."""
    each = padded(spec.writes.rows) * found.value_block // (32 * found.warps)
    return 16 <= each <= 128


def _step(w: Writes, order: str) -> Schedule:
    """Tiles of a state that are whole lines of memory, one element per lane at least."""
    rows = padded(w.rows)
    columns = min(padded(w.cols), max(64, 128 // rows))
    return Schedule(order=order, value_block=columns, warps=min(8, max(1, rows * columns // 2048)), stages=1)


def _walked(w: Writes) -> str:
    """Over the tokens that chose a part, unless the part changes with all tokens."""
    return "token" if w.route is None or w.route.freeze else "mask"


def _token(w: Writes) -> Schedule:
    warps = min(4, max(1, padded(w.rows) // 128))
    return Schedule(order=_walked(w), value_block=min(16, padded(w.cols)), warps=warps, stages=1)


def _token_back(w: Writes) -> Schedule:
    warps = min(8, max(2, padded(w.rows) // 32))  # fewer would keep some of a tall state on the stack
    return Schedule(order=_walked(w), value_block=min(16, padded(w.cols)), block=16, rows=1, warps=warps, stages=1)


def default(spec: Scan, target: str) -> Schedule:
    """On a GPU chunks, or a narrow tile of columns per program; on a CPU the whole state."""
    if (chunked := in_chunks(spec, target)) is not None and _checked(spec.writes):
        return chunked
    if target.startswith("triton"):
        return _token(spec.writes)
    return Schedule(order=_walked(spec.writes), lanes=("e", "d"), split_dims=False)


def default_grad(spec: ScanGrad, target: str) -> Schedule:
    """As ``default``; the recurrence keeps a state per 16 tokens, from which it walks a few at a time on a CPU.

    What chunks keep says nothing to the recurrence: it is set for those that the tuner may try in its place.
    """
    w = spec.forward.writes
    chunked = in_chunks_back(spec, target)
    if chunked is not None and _checked(w):
        return chunked
    if target.startswith("triton"):
        return replace(_token_back(w), keep=chunked is not None)
    return Schedule(order=_walked(spec.forward.writes), block=16, rows=_held(spec), lanes=("e", "d"), split_dims=False)


def _held(spec: ScanGrad) -> int:
    """Tokens whose states a CPU holds at once: as many as half a megabyte has room for, fewer where many heads read."""
    own = spec.forward
    room = HELD_BYTES // (4 * own.writes.rows * own.writes.cols)
    most = 8 if sum(read.heads for read in own.reads) <= 2 * own.writes.heads else 4
    return min(most, 1 << (max(room, 1).bit_length() - 1))


def known(spec: Scan, target: str) -> tuple[Schedule, ...]:
    """Chunks, where they are not the default: the tuner admits them only after their results were checked."""
    return beside(spec.writes, default(spec, target), in_chunks(spec, target))


def known_grad(spec: ScanGrad, target: str) -> tuple[Schedule, ...]:
    """As ``known``, for the adjoint."""
    return beside(spec.forward.writes, default_grad(spec, target), in_chunks_back(spec, target))


def beside(w: Writes, usual: Schedule, chunked: Schedule | None) -> tuple[Schedule, ...]:
    """Chunks beside what is usual; delta rules rounded and exact: slow decays need the latter, others are quicker."""
    if chunked is None:
        return ()
    names = ("order", "value_block", "splits", "warps", "stages", "descriptors", "keep", "exact")
    found = replace(usual, **{name: getattr(chunked, name) for name in names})
    sizes = (found,) if usual.order == "chunk" else (replace(found, rows=32), replace(found, rows=64))
    every = [*sizes, *(replace(each, exact=not each.exact) for each in sizes if _rounds(w))]
    return tuple(each for each in every if each != usual)


def _rounds(w: Writes) -> bool:
    """Whether answers of the state come back into it, with what was rounded on the way."""
    return w.rule == "delta" or w.erase is not None


def space(spec: Scan, target: str) -> Choices:
    """Columns per program; of chunks also their tokens, and segments; of parts whether they meet all tokens."""
    walks = _walks(spec.writes, in_chunks(spec, target) is not None)
    if in_chunks(spec, target) is not None:
        return _chunked(spec.writes) | walks
    if target.startswith("triton"):
        return {"value_block": (8, 16, 32), "warps": (1, 2, 4), **walks}
    return {"value_block": (0, 16, 32, 64), **walks}


def _chunked(w: Writes) -> Choices:
    return _CHUNKED | ({"exact": (False, True)} if _rounds(w) else {})


def _walks(w: Writes, chunked: bool) -> Choices:
    """The loop orders of a bank with a route; a few parts may as well meet every token."""
    if w.route is None or not w.route.freeze:
        return {}
    return {"order": (*["chunk"] * chunked, "token", *["mask"] * (w.route.parts <= FEW))}


def space_grad(spec: ScanGrad, target: str) -> Choices:
    """Columns per program, tokens between states that are kept, and tokens held at once; of chunks as for a scan."""
    walks = _walks(spec.forward.writes, in_chunks_back(spec, target) is not None)
    if in_chunks_back(spec, target) is not None:
        return _chunked(spec.forward.writes) | walks
    if target.startswith("triton"):
        return {"value_block": (8, 16, 32), "block": (8, 16, 32), "rows": (1, 2), "warps": (1, 2, 4), **walks}
    return {"block": (8, 16, 32, 64), "rows": (1, 2, 4, 8), **walks}
