"""One-token steps of matrix states against a copy of the bytes that they must move, and against fla's:
`python -m sparsec.benchmarks.steps [CASE …] [--sweep] [--target cpu] [--json FILE]`.

A row is the time of one layer in a CUDA graph of as many layers as outgrow the L2 cache, each with states of its own,
and only after its outputs were checked with the oracle. A step reads the states that its tokens choose and writes them
back; a copy of as many bytes reads half of them and writes half.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from sparsec.benchmarks.hardware import hardware
from sparsec.benchmarks.peers.fla_steps import peer
from sparsec.frontends.preset import find, preset
from sparsec.ir.variant import Variant, dim_names
from sparsec.lower.scan.schedules import COLUMNS, WARPS, fills, one_token_form
from sparsec.oracle.error import check
from sparsec.oracle.truth import oracle
from sparsec.plan.states.scan_specs import Scan
from sparsec.runtime.compiled import Compiled, compile
from sparsec.runtime.decode.cache_state import Cache
from sparsec.runtime.inputs import inputs
from sparsec.tile.schedule import Schedule

FILLED = 3
"""Tokens of every sequence before the step that is checked."""
CHECKED = 2
"""Sequences that the oracle works out."""
ALL_LAYERS = 512 * 2**20
"""Bytes of the states of all layers together, which no L2 cache holds."""
ROUNDS = 31
PAGE = 2**20
"""Elements of which a copy has a whole number: odd sizes are copied more slowly."""


@dataclass(frozen=True, slots=True)
class StepCase:
    """One design at one batch.

    Attributes:
        knobs: of the preset; of those for raw inputs, the ones that it has.
    """

    name: str
    design: str
    batch: int
    heads: int = 16
    dim: int = 128
    knobs: tuple[tuple[str, object], ...] = ()

    @property
    def variant(self) -> Variant:
        """Its declaration, on raw inputs where it takes them."""
        known = {knob.name for knob in find(self.design).knobs}
        wanted: dict[str, Any] = {"raw": True, **dict(self.knobs)}
        return preset(self.design, **{name: value for name, value in wanted.items() if name in known})

    def tokens(self, count: int, dtype: str, device: str, seed: int) -> dict[str, Tensor]:
        """New tokens of every sequence."""
        sizes = {"B": self.batch, "T": count, "H": self.heads, "HKV": self.heads, "D": self.dim, "DV": self.dim}
        sizes = {n: x for n, x in {**sizes, "DX": self.heads * self.dim}.items() if n in dim_names(self.variant)}
        made = inputs(self.variant, dtype=dtype, device=device, seed=seed, **sizes)
        fixed = inputs(self.variant, dtype=dtype, device=device, seed=0, **{**sizes, "T": FILLED})
        return {name: x if name in self.growing else fixed[name] for name, x in made.items()}

    @property
    def growing(self) -> frozenset[str]:
        """Inputs with rows per token; the others are a layer's own."""
        shapes = {n: s.shape for n, s in self.variant.inputs.items()}
        return frozenset(n for n, shape in shapes.items() if len(shape) > 1 and str(shape[1]) == "T")


_DESIGNS: dict[str, tuple[str, dict[str, object]]] = {
    "gdn": ("gdn", {}),
    "kda": ("kda", {}),
    "retnet": ("retnet", {}),
    "rwkv7": ("rwkv7", {}),
    "sse": ("sse", {"rule": "gdn"}),
    "sse_n32": ("sse", {"rule": "gdn", "parts": 32}),
    "rsa": ("rsa", {}),
    "rsa_sum": ("rsa", {"readout": "sum"}),
}


def _case(name: str, batch: int) -> StepCase:
    design, knobs = _DESIGNS[name]
    return StepCase(f"{name}_step_b{batch}", design, batch, knobs=tuple(knobs.items()))


CASES = {case.name: case for case in (_case(name, batch) for name in _DESIGNS for batch in (64, 256))}


@dataclass(frozen=True, slots=True)
class Row:
    """What was measured of a case.

    Attributes:
        nbytes: that a step moves: states read and written, and tokens.
        copy_seconds: of a copy that moves as many.
        share: the copy's time over ours.
        peer_seconds: of fla's step on the same inputs; None where it has none.
        error: the largest of outputs and states against the oracle, relative.
    """

    name: str
    launches: int
    nbytes: int
    seconds: float
    copy_seconds: float
    share: float
    peer_seconds: float | None
    error: float


def caches(made: Compiled, case: StepCase, dtype: str, device: str) -> tuple[list[Cache], dict[str, Tensor]]:
    """A cache per layer with some tokens each, and the tokens of a step."""
    prompt = case.tokens(FILLED, dtype, device, 0)
    found, room = list[Cache](), ALL_LAYERS if device == "cuda" else 0
    while not found or sum(cache.nbytes for cache in found) < room:
        found.append(made.init_cache(case.batch, deterministic=False))
        made.decode(found[-1], **dict[str, Any](prompt))
    return found, case.tokens(1, dtype, device, 1)


def error(case: StepCase, dtype: str, cache: Cache, out: Tensor, fed: Sequence[dict[str, Tensor]]) -> float:
    """Of some sequences, which were fed these tokens: raises where the oracle's bound is exceeded."""
    growing = case.growing
    x = {n: torch.cat([t[n] for t in fed], 1) if n in growing else fed[0][n] for n in fed[0]}
    some = {n: y[:CHECKED].cpu() if n in growing else y.cpu() for n, y in x.items()}
    truth = oracle(case.variant, some, form="vector")
    assert isinstance(truth, Tensor)
    right = truth[:, -out.shape[1] :]
    verdict = check(out[:CHECKED].cpu(), right, dtype, "o")
    assert verdict, f"{case.name}: {verdict.sentence}"
    return float((out[:CHECKED].cpu().double() - right).norm() / right.norm())


def seconds(runs: Sequence[Callable[[], object]], device: str) -> float:
    """The time of one of some calls: in a CUDA graph of all of them, the median over replays."""
    if device != "cuda":
        return median(_wall(run) for run in runs for _ in range(5))
    for run in runs:
        run()
    torch.cuda.synchronize()
    graph, times = torch.cuda.CUDAGraph(), list[float]()
    with torch.cuda.graph(graph):
        for run in runs:
            run()
    for _ in range(ROUNDS):
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        stop.record()
        stop.synchronize()
        times.append(float(start.elapsed_time(stop)) * 1e-3 / len(runs))
    return median(times)


def _wall(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def moved(made: Compiled, batch: int) -> int:
    """Bytes of the states that a step reads: of a bank with a route, those of the chosen parts."""
    scans = [k.kernel.spec for k in made.decoder.kept()[-1].kernels if isinstance(k.kernel.spec, Scan)]
    each = [(w.parts if w.route is not None and not w.route.freeze else w.slots, w) for w in (s.writes for s in scans)]
    return sum(4 * batch * parts * w.heads * w.rows * w.cols for parts, w in each)


def copy_seconds(nbytes: int, count: int, device: str) -> float:
    """Of the quicker of torch's copy and a plain kernel over flat tensors, which move so many bytes: half are read."""
    size = -(-nbytes // 8 // PAGE) * PAGE
    pairs = [[torch.zeros(size, device=device) for _ in range(2)] for _ in range(count)]
    ways = [[partial(to.copy_, x) for to, x in pairs], [partial(torch.neg, x, out=to) for to, x in pairs]]
    return min(seconds(runs, device) for runs in ways) * nbytes / (8 * size)


def variations(case: StepCase, target: str) -> list[dict[str, Schedule]]:
    """Every schedule of the space for the states of a step, all of them alike, by kernel."""
    made = compile(case.variant, target)
    known = {"B": case.batch, "TQ": 1, "TK": 1, "q_offset": 0, "H": case.heads, "HKV": case.heads, "D": case.dim}
    plan = made.decoder.step.plan({**known, "DV": case.dim, "DX": case.heads * case.dim}, "bfloat16")
    scans = {k.name: k.spec for k in plan.kernels if isinstance(k.spec, Scan) and k.spec.writes.rows > 1}
    found = list[dict[str, Schedule]]()
    for columns, warps in product(COLUMNS, WARPS):
        each = {n: replace(one_token_form(s, target), value_block=columns, warps=warps) for n, s in scans.items()}
        found += [each] if all(fills(s, each[n]) for n, s in scans.items()) else []
    return found


def row(case: StepCase, target: str, schedules: Mapping[str, Schedule] | None = None) -> Row:
    """Check a step, time it, time a copy and the peer; scans under these schedules where some are given."""
    device = "cpu" if target in ("cpu", "interpreter") else "cuda"
    dtype = "float32" if device == "cpu" else "bfloat16"
    made = compile(case.variant, target)
    made.decoder.step.schedules = schedules or {}
    layers, step = caches(made, case, dtype, device)
    prompt, named = case.tokens(FILLED, dtype, device, 0), dict[str, Any](step)
    out = made.decode(layers[0], **named)
    assert isinstance(out, Tensor)
    wrong = error(case, dtype, layers[0], out, [prompt, step])
    nbytes = 2 * moved(made, case.batch) + sum(x.numel() * x.element_size() for x in (*step.values(), out))
    taken = seconds([partial(made.decode, cache, **named) for cache in layers], device)
    states = [next(iter(cache.states.values())) for cache in layers]
    calls = peer(case.design, step, states) if device == "cuda" else []
    beside = seconds(calls, device) if calls else None
    built, count = made.decoder.kept()[-1], len(layers)
    assert len(built.in_place) == len(made.decoder.spec.states), "states were copied"
    launches = len(built.launches) + (0 if made.decoder.ahead is None else 1)
    del layers, states
    whole = copy_seconds(nbytes, count, device)
    return Row(case.name, launches, nbytes, taken, whole, whole / taken, beside, wrong)


def text(found: Row) -> str:
    """A line of the table."""
    peer = found.peer_seconds
    beside = "" if peer is None else f"  fla {peer * 1e6:7.1f} µs, ratio {peer / found.seconds:.2f}"
    return (
        f"{found.name:18s} {found.seconds * 1e6:8.1f} µs  {found.launches} launches  {found.nbytes / 1e6:7.1f} MB  "
        f"copy {found.copy_seconds * 1e6:8.1f} µs  {found.share:6.1%} of its rate{beside}  error {found.error:.1e}"
    )


def described(schedules: Mapping[str, Schedule]) -> set[str]:
    """The schedules of a sweep in short."""
    return {f"{s.value_block} columns, {s.warps} warps" for s in schedules.values()}


def main(words: Sequence[str] | None = None) -> None:
    """Print a table, and write JSON if asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cases", nargs="*", default=[], metavar="CASE", help=", ".join(CASES))
    parser.add_argument("--target", default="cuda")
    parser.add_argument("--sweep", action="store_true", help="every schedule of the space")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(words)
    found = []
    for name in args.cases or CASES:
        try:
            every = variations(CASES[name], "triton:sm_90") if args.sweep else [{}]
            for schedules in every:
                found.append(row(CASES[name], args.target, schedules))
                print(text(found[-1]), *described(schedules), flush=True)
        except Exception as problem:  # the cases after it are worth having
            print(f"{name}: failed, {type(problem).__name__}: {problem}"[:600], flush=True)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    if args.json:
        device = "cuda" if args.target not in ("cpu", "interpreter") else "cpu"
        args.json.write_text(json.dumps({"hardware": hardware(device), "rows": [asdict(r) for r in found]}, indent=1))


if __name__ == "__main__":
    main(sys.argv[1:])
