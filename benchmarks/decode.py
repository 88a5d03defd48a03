"""Decode steps against the bytes that they must read: `python -m sparsec.benchmarks.decode [--sweep] [--target cpu]`.

A row is timed as one CUDA graph per token, the L2 cache flushed before each, and only after a sequence of its cache was
checked with the oracle. ``--sweep`` takes HSA from 64K to 8M tokens, its chunks in the host's memory and in the GPU's.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from sparsec.benchmarks.hardware import hardware
from sparsec.frontends.preset import preset
from sparsec.ir.variant import Variant, dim_names
from sparsec.oracle.error import check
from sparsec.oracle.truth import oracle_rows
from sparsec.runtime.compiled import Compiled, compile
from sparsec.runtime.decode.cache_state import Cache
from sparsec.runtime.inputs import inputs

KERNEL_SECONDS = 4e-6
"""What a kernel of a plan may take if its bytes take less."""
ROOM, ROUNDS = 512, 101


@dataclass(frozen=True, slots=True)
class Setting:
    """The sizes of a run."""

    batch: int
    length: int
    heads: int
    kv_heads: int
    dim: int
    dtype: str
    device: str

    @property
    def dims(self) -> dict[str, int]:
        """By the names that presets use."""
        return {"H": self.heads, "HKV": self.kv_heads, "D": self.dim, "DV": self.dim, "DR": self.dim}


@dataclass(frozen=True, slots=True)
class Row:
    """One design at one length.

    Attributes:
        launches: programs of a step.
        needed: bytes that one step must read.
        share: the time that half a copy of those bytes takes, over ours.
        reach: whether that is 70 %, or the step takes no more than 4 µs per launch.
        hot, cold: bytes of the cache on the device and in the host's memory.
        error: of one sequence's outputs to the oracle's; None where it was not checked.
    """

    design: str
    batch: int
    length: int
    launches: int
    seconds: float
    needed: int
    share: float
    reach: bool
    hot: int
    cold: int
    error: float | None


def needed(design: str, given: Mapping[str, Any], s: Setting, item: int = 2) -> int:
    """Bytes that a step must read: every summary once, every chosen chunk, the window."""
    token, knobs = s.kv_heads * 2 * s.dim * item, {n: int(x) for n, x in given.items() if not isinstance(x, str)}
    if design == "hsa":
        return s.batch * (s.length // knobs["chunk"] * token // 2 + knobs["k"] * knobs["chunk"] * token)
    tokens = s.length // knobs["stride"] + knobs["k"] * knobs["block"] + knobs["window"]
    return s.batch * tokens * token


DESIGNS: dict[str, dict[str, Any]] = {
    "hsa": {"chunk": 64, "k": 8},
    "nsa": {"block": 64, "k": 16, "size": 32, "stride": 16, "window": 512, "rounding": "storage"},
}


def tokens(variant: Variant, s: Setting, count: int, seed: int) -> dict[str, Tensor]:
    """New tokens of every sequence; one row of a chunk at least, which is ignored until the chunk is complete."""
    dims = {n: x for n, x in {"B": s.batch, **s.dims}.items() if n in dim_names(variant)}
    return inputs(variant, dtype=s.dtype, device=s.device, seed=seed, T=count, **dims)


def filled(made: Compiled, s: Setting, cold: bool = False, at_once: int = 1024) -> Cache:
    """A cache of random tokens, as long as the setting says."""
    cache = made.init_cache(s.batch, s.length + ROOM, cold=cold, deterministic=False)
    count = min(at_once, s.length)
    for n in range(s.length // count):
        made.decoder(cache, tokens(made.variant, s, count, n), outputs=False)
    return cache


def error(made: Compiled, cache: Cache, step: Mapping[str, Tensor], out: Tensor, s: Setting) -> float:
    """The relative error of the first sequence's new token; raises where the oracle's bound is exceeded."""
    length = cache.known_lengths[0]
    kept = {k.name: k.unit for k in made.decoder.spec.kept}
    given = {n: x[:1] for n, x in step.items() if n not in kept}
    for name, unit in kept.items():
        pages = cache.tensors[name]
        table = cache.tables["cache_blocks"][0].long().to(pages.device)
        rows = pages[table].flatten(0, 1)[None, : -(-length // unit)]
        given[name] = rows.reshape(1, rows.shape[1], *step[name].shape[2:]).cpu()
    truth = oracle_rows(made.variant, {n: x.cpu() for n, x in given.items()}, [0], q_offset=length - 1)
    assert isinstance(truth, Tensor)
    verdict = check(out[:1].cpu(), truth, s.dtype, "o")
    assert verdict, verdict.sentence
    wrong = (out[:1].cpu().double() - truth).square().mean().sqrt() / truth.square().mean().sqrt()
    return float(wrong)


def seconds(run: Callable[[], object], device: str, rounds: int = ROUNDS) -> float:
    """The median time of a call, with a cold L2 cache on a GPU."""
    if device != "cuda":
        return median(_wall(run) for _ in range(3))
    flush, times = torch.empty(256 * 2**20, dtype=torch.int8, device="cuda"), []
    for _ in range(rounds):
        flush.zero_()
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        stop.record()
        stop.synchronize()
        times.append(float(start.elapsed_time(stop)) * 1e-3)
    return median(times)


def _wall(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def copy_seconds(size: int, device: str) -> float:
    """Half the time of a copy of so many bytes, which are read and written."""
    source = torch.ones(size // 4, dtype=torch.float32, device=device)
    target = torch.empty_like(source)
    return seconds(lambda: target.copy_(source), device) / 2


def row(design: str, s: Setting, target: str, cold: bool = False, checked: bool = True) -> Row:
    """Fill a cache, check a step, time it."""
    knobs = DESIGNS[design]
    variant = preset(design, **knobs)
    made = compile(variant, target)
    cache = filled(made, s, cold, 1024 if s.batch > 1 else 16384)
    step = tokens(variant, s, 1, 10**6)
    first = made.decode(cache, **dict[str, Any](step))
    assert isinstance(first, Tensor)
    found = error(made, cache, step, first, s) if checked else None
    run: Callable[[], object] = made.decode_graph(cache, **dict[str, Any](step)) if s.device == "cuda" else (
        lambda: made.decode(cache, **dict[str, Any](step)))  # fmt: skip
    taken, size = seconds(run, s.device), needed(design, knobs, s)
    launches = launches_of(made)
    share = copy_seconds(size, s.device) / taken
    reach = share >= 0.7 or taken <= KERNEL_SECONDS * launches
    name = f"{design}{' cold' if cold else ''}"
    return Row(name, s.batch, s.length, launches, taken, size, share, reach, cache.nbytes, cache.cold_nbytes, found)


def launches_of(made: Compiled) -> int:
    """Programs of a step for few new tokens, and what counts them where none of those does."""
    built = made.decoder.kept()[-1]  # what ran before was a filling of the cache
    return len(built.launches) + min(len(built.appends), 1) + (not any(x.counts for x in built.launches))


def text(found: Row) -> str:
    """A line of the table."""
    wrong = "" if found.error is None else f"  error {found.error:.1e}"
    return (
        f"{found.design:10s} B{found.batch:<3d} {found.length:>8d} tokens  {found.seconds * 1e6:9.1f} µs  "
        f"{found.launches:2d} launches  {found.needed / 1e6:8.1f} MB  {found.share:6.1%} of a copy  "
        f"{'reach' if found.reach else '     '}  cache {found.hot / 1e6:8.1f} + {found.cold / 1e6:8.1f} MB{wrong}"
    )


def rows(args: argparse.Namespace) -> list[Row]:
    """What was asked for, printed as it comes."""
    device = "cpu" if args.target in ("cpu", "interpreter") else "cuda"
    dtype = "float32" if device == "cpu" else "bfloat16"
    found = []

    def add(*wanted: Any, **more: Any) -> None:
        found.append(row(*wanted, **more))
        print(text(found[-1]), flush=True)
        if device == "cuda":
            torch.cuda.empty_cache()

    sizes = (args.heads, args.kv_heads, args.dim, dtype, device)
    for design in args.designs:
        add(design, Setting(args.batch, args.length, *sizes), args.target)
    for length in (args.length << n for n in range(args.doublings + 1)) if args.sweep else ():
        for cold in (True, False):
            add("hsa", Setting(1, length, *sizes), args.target, cold=cold, checked=length <= 1 << 17)
    return found


def main(words: Sequence[str] | None = None) -> None:
    """Print a table, and write JSON if asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--target", default="cuda")
    parser.add_argument("--designs", nargs="*", default=list(DESIGNS), choices=list(DESIGNS))
    for name, value in (("batch", 32), ("length", 65536), ("heads", 64), ("kv-heads", 4), ("dim", 128)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--sweep", action="store_true", help="HSA at batch 1, doubling the length")
    parser.add_argument("--doublings", type=int, default=7, help="of the sweep: 7 go from 64K to 8M")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(words)
    found = rows(args)
    if args.json:
        record = {
            "hardware": hardware("cuda" if args.target not in ("cpu", "interpreter") else "cpu"),
            "rows": [asdict(r) for r in found],
        }
        args.json.write_text(json.dumps(record, indent=1, default=str))


if __name__ == "__main__":
    main(sys.argv[1:])
