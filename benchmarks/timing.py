"""Two clocks, one for CUDA and one for the CPU, and the interleaved comparison that every reported ratio comes from."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import torch

Run = Callable[[], object]
Clock = Callable[[Run, float, float], float]


@dataclass(frozen=True, slots=True)
class Pair:
    """Two sides timed in turn. A ratio is the peer's time over ours: above 1, ours is faster."""

    ours_ms: float
    peer_ms: float
    ratio: float
    ratio_low: float
    ratio_high: float
    rounds: int


def time_gpu(run: Run, warmup_ms: float = 100, rep_ms: float = 400) -> float:
    """Median milliseconds of one call between CUDA events, the L2 cache flushed before each."""
    from triton.testing import do_bench

    return float(do_bench(run, warmup=warmup_ms, rep=rep_ms, return_mode="median"))


def time_cpu(run: Run, warmup_ms: float = 100, rep_ms: float = 400) -> float:
    """Median milliseconds of one call by the wall clock."""
    _sample_cpu(run, warmup_ms)
    return median(_sample_cpu(run, rep_ms))


def _sample_cpu(run: Run, budget_ms: float) -> list[float]:
    """Times of repeated calls until the budget is spent; one call at least."""
    samples: list[float] = []
    while not samples or sum(samples) < budget_ms:
        started = time.perf_counter()
        run()
        samples.append((time.perf_counter() - started) * 1e3)
    return samples


def clock_for(device: str) -> Clock:
    """The clock of a device type, `cuda` or `cpu`."""
    return time_gpu if device == "cuda" else time_cpu


def time_pair(ours: Run, peer: Run, rounds: int = 5, device: str = "cuda") -> Pair:
    """Time A B A B …, and take the median, lowest and highest of the rounds' ratios."""
    clock = clock_for(device)
    for run in (ours, peer):
        run()
    synchronize(device)
    times = [(clock(ours, 25, 100), clock(peer, 25, 100)) for _ in range(rounds)]
    ratios = sorted(b / a for a, b in times)
    return Pair(
        ours_ms=median(a for a, _ in times),
        peer_ms=median(b for _, b in times),
        ratio=median(ratios),
        ratio_low=ratios[0],
        ratio_high=ratios[-1],
        rounds=rounds,
    )


def synchronize(device: str) -> None:
    """Wait for the device; nothing to wait for on the CPU."""
    if device == "cuda":
        torch.cuda.synchronize()


def peak_bytes(run: Run, device: str) -> int | None:
    """Most bytes that one call held beyond those allocated before it; None on the CPU, where torch keeps no count."""
    if device != "cuda":
        return None
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before
