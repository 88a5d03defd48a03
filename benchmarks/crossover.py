"""Where sparse attention pays: the shortest length at which a preset's forward and backward beat dense attention's."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from sparsec.benchmarks.cases import FullCase
from sparsec.benchmarks.peers import sdpa
from sparsec.benchmarks.peers.form import Run, eager
from sparsec.benchmarks.timing import synchronize, time_pair
from sparsec.frontends.preset import preset, presets
from sparsec.ir.error import InputError
from sparsec.ir.op import Op
from sparsec.ir.variant import Variant
from sparsec.runtime.compiled import Compiled, compile
from sparsec.runtime.inputs import inputs

Report = Callable[[str], None]
TOP, BLOCK = 16, 64
"""What presets that choose blocks choose."""
CHECKED, CHECKED_STATES = 512, 128
"""The length at which each is checked before it is timed; of states the oracle differentiates through every token's."""
LONGEST_STEP = 10.0
"""Seconds of a step of ours after which no longer length is tried."""


@dataclass(frozen=True, slots=True)
class Setting:
    """Shape and lengths on a device; the same for all presets."""

    device: str
    dtype: str
    heads: tuple[int, int]
    dim: int
    lengths: tuple[int, ...]


GPU = Setting("cuda", "bfloat16", (64, 4), 128, tuple(1024 << n for n in range(7)))
CPU = Setting("cpu", "float32", (8, 2), 64, tuple(1024 << n for n in range(4)))


@dataclass(frozen=True, slots=True)
class Point:
    """One length: milliseconds of a forward and backward of ours and of dense attention."""

    length: int
    ours_ms: float
    dense_ms: float
    ratio: float


@dataclass(frozen=True, slots=True)
class Crossover:
    """A preset's shortest winning length; None where none of the lengths wins.

    Attributes:
        refused: why it could not go on, if it could not; no length ran where there are no points.
        stopped: which lengths were left out because a step would take too long.
        unfinished: whether longer lengths are still to be tried, as in a row that is kept on the way.
    """

    preset: str
    knobs: dict[str, object]
    shape: str
    dense: str
    length: int | None
    points: tuple[Point, ...]
    refused: str = ""
    stopped: str = ""
    unfinished: bool = False


HEAD = ("preset", "knobs", "beats dense from", "ratio there", "lengths that ran")


def line(found: Mapping[str, Any]) -> tuple[str, ...]:
    """A crossover as JSON -> its line under ``HEAD``."""
    knobs = " ".join(f"{name}={value}" for name, value in found["knobs"].items()) or "defaults"
    ratios = ", ".join(f"{p['length']}: {p['ratio']:.2f}" for p in found["points"])
    open_end = "not finished" if found.get("unfinished") else ""
    ratios = "; ".join(x for x in (ratios, found.get("stopped", ""), found["refused"][:100], open_end) if x)
    won = found["length"] is not None
    best = f"{found['points'][-1]['ratio']:.2f}" if won else ""
    return found["preset"], knobs, f"T = {found['length']}" if won else "–", best, ratios


def points_of(row: Mapping[str, Any], here: Setting) -> list[Point]:
    """The points of a row as JSON; none of another shape or device."""
    return [Point(**p) for p in row["points"]] if row.get("shape") == shape_of(here) else []


def shape_of(here: Setting) -> str:
    """The setting as a row says it."""
    heads, kv_heads = here.heads
    return f"B1 H{heads} HKV{kv_heads} D{here.dim} {here.dtype} on {here.device}"


def present() -> Setting:
    """The setting of this machine."""
    return GPU if torch.cuda.is_available() else CPU


def with_heads(here: Setting, text: str) -> Setting:
    """The setting with heads of queries and of keys, as ``16,4``."""
    sizes = [int(part) for part in text.split(",") if part.strip().isdecimal()]
    if len(sizes) != 2 or text.count(",") != 1 or not all(sizes) or sizes[0] % sizes[1]:
        raise InputError("heads", repr(text), "it takes those of queries, a multiple of those of keys", "--heads 16,4")
    return replace(here, heads=(sizes[0], sizes[1]))


def default_presets() -> list[str]:
    """Every preset that is sparse."""
    return [p.name for p in presets() if p.name != "full"]


def knobs_of(name: str) -> dict[str, object]:
    """The top 16 blocks of 64 where a preset chooses blocks by a count; else what it has by default.

    Blocks that are always read are counted among the 16 where they fit, else they come on top.
    """
    known = {knob.name for p in presets() if p.name == name for knob in p.knobs}
    unit = next((word for word in ("chunk", "block") if word in known), None)
    top: dict[str, object] = {unit: BLOCK, "k": TOP} if unit and "k" in known else {}
    return top | {"count_forced": False} if "count_forced" in known else top


def crossovers(
    names: Sequence[str],
    setting: Setting | None = None,
    *,
    rounds: int = 3,
    trials: int = 0,
    longest: float = LONGEST_STEP,
    report: Report = print,
    known: Mapping[str, Sequence[Point]] | None = None,
    keep: Callable[[Crossover], None] = lambda row: None,
) -> Iterator[Crossover]:
    """One per preset; lengths double until one wins. A preset that cannot run, or is wrong, says so.

    Args:
        trials: tune each kernel at each length with so many trials first; 0 for default schedules or records.
        longest: seconds of a step of ours after which no longer length is tried; the row says so.
        known: points by preset that were measured before, and are not again.
        keep: given the row of a preset after each length, unfinished.
    """
    here = setting or present()
    for name in names or default_presets():
        points = [*(known or {}).get(name, ())]
        refused = stopped = ""
        try:
            for late in _search(preset(name, **knobs_of(name)), here, points, (rounds, trials, longest)):
                stopped = late
                report(f"{name} at {points[-1].length}: {_beside(points[-1], here)}")
                keep(_row(name, here, points, unfinished=True))
        except Exception as error:  # the presets after it are worth having
            refused = f"{type(error).__name__}: {error}".splitlines()[0][:300]
        found, dense = _row(name, here, points, refused, stopped), dense_of(here)
        won = f"beats {dense} from {found.length}" if found.length else ""
        report(f"{name}: {won or refused or stopped or f'{dense} is quicker'}")
        yield found


def _beside(point: Point, here: Setting) -> str:
    return f"{point.ours_ms:.3f} ms, {dense_of(here)} {point.dense_ms:.3f} ms, ratio {point.ratio:.2f}"


def _row(
    name: str, here: Setting, points: Sequence[Point], refused: str = "", stopped: str = "", unfinished: bool = False
) -> Crossover:
    """What is known of a preset by its points."""
    won = bool(points) and points[-1].ratio > 1
    length = points[-1].length if won else None
    return Crossover(
        name,
        knobs_of(name),
        shape_of(here),
        dense_of(here),
        length,
        tuple(points),
        refused,
        stopped,
        unfinished and not won,
    )


def dense_of(here: Setting) -> str:
    """What is compared with."""
    return "SDPA cuDNN" if here.device == "cuda" else "SDPA"


def _search(variant: Variant, here: Setting, points: list[Point], bounds: tuple[int, int, float]) -> Iterator[str]:
    """Add points up to the first that wins or takes too long; after each a sentence about lengths left out, or ""."""
    rounds, trials, longest = bounds
    compiled = compile(variant, "cuda" if here.device == "cuda" else "cpu")
    if points and points[-1].ratio > 1:
        return
    _check(compiled, here)
    for length in here.lengths[len(points) :]:
        given = inputs_of(variant, here, length)
        if trials:
            compiled.tune(given, trials=trials, gradients=True)
        step = _step(compiled, given)
        taken = _seconds(step, here.device)
        pair = time_pair(step, _dense(here, length), rounds if taken <= longest else 1, here.device)
        points.append(Point(length, pair.ours_ms, pair.peer_ms, pair.ratio))
        late = taken > longest and length < here.lengths[-1] and pair.ratio <= 1
        yield f"no longer one: a step at {length} took {taken:.1f} s, more than {longest:g}" if late else ""
        if late or pair.ratio > 1:
            return


def first_step(name: str, here: Setting) -> Run:
    """A forward and backward of a preset at the shortest length."""
    variant = preset(name, **knobs_of(name))
    compiled = compile(variant, "cuda" if here.device == "cuda" else "cpu")
    return _step(compiled, inputs_of(variant, here, here.lengths[0]))


def _seconds(step: Run, device: str) -> float:
    """Wall time of the second call: the first may build."""
    step()
    synchronize(device)
    began = time.perf_counter()
    step()
    synchronize(device)
    return time.perf_counter() - began


def _check(compiled: Compiled, here: Setting) -> None:
    """Raises where the output or a gradient is not the oracle's."""
    from sparsec.testing.whole.trained import wrong_on

    states = any(node.op is Op.STATE for node in compiled.graph.nodes)
    length = min(CHECKED_STATES if states else CHECKED, here.lengths[0])
    wrong = wrong_on(compiled, inputs_of(compiled.variant, here, length), here.dtype)
    if wrong:
        raise ValueError("; ".join(wrong))


def inputs_of(variant: Variant, here: Setting, length: int) -> dict[str, Tensor]:
    """Random inputs of a setting's heads, dims and dtype."""
    known = {str(d) for spec in variant.inputs.values() for d in spec.shape if d.head == "var"}
    heads, kv_heads = here.heads
    wanted = {"B": 1, "H": heads, "HKV": kv_heads, "D": here.dim, "DV": here.dim, "DR": here.dim}
    if "HV" in known:  # heads of states, which share the keys of fewer
        wanted |= {"HV": heads, "H": kv_heads}
    dims = {name: size for name, size in wanted.items() if name in known}
    return inputs(variant, dtype=here.dtype, device=here.device, T=length, **dims)


def _step(compiled: Compiled, given: dict[str, Tensor]) -> Run:
    """A forward, and a backward for every input that can have a gradient."""
    leaves: dict[str, Any] = {name: x.requires_grad_(x.is_floating_point()) for name, x in given.items()}
    learned = [x for x in leaves.values() if x.requires_grad]

    def forward() -> Tensor:
        out = compiled(None, **leaves)
        assert isinstance(out, Tensor), "presets have one output"
        return out

    grad = torch.randn_like(forward())

    def run() -> Tensor:
        out = forward()
        torch.autograd.grad(out, learned, grad, allow_unused=True)
        return out

    return run


def _dense(here: Setting, length: int) -> Run:
    """Dense causal attention, forward and backward, with queries, keys and values of the same shape."""
    dtype = getattr(torch, here.dtype)
    case = FullCase("dense", 1, *here.heads, length, here.dim, device=here.device, dtype=dtype, train=True)
    form = sdpa.forms(case)[0]
    assert form.build is not None
    return form.build(case, case.inputs(), eager)
