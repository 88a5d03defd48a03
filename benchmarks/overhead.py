"""What a call costs the host beyond its launches: `python -m sparsec.benchmarks.overhead [--target cuda]`.

A GPU runs the kernels, on inputs so small that it is always waiting for the host. Elsewhere launches do nothing, and
the rest is what a call for a GPU does, on the CPU's memory.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import torch
from torch import Tensor

from sparsec.frontends.preset import preset
from sparsec.runtime.compiled import Compiled, compile
from sparsec.runtime.inputs import inputs
from sparsec.runtime.quick import Device, Quick, on_gpu
from sparsec.runtime.ready import Ready

CASES: dict[str, dict[str, object]] = {
    "streaming": {"window": 64},
    "msa": {"pattern": "window", "window": 64, "slots": 4},
    "hsa": {"chunk": 16, "k": 3},
    "nsa": {"block": 16, "k": 4, "size": 16, "stride": 16, "window": 16},
}
ROUNDS, CALLS = 41, 50  # so few that a queue of launches never fills up


def seconds(run: Callable[[], object]) -> float:
    """Seconds of this thread for one call, without those when others ran: the median of several rounds' means."""
    run()
    rounds = []
    for _ in range(ROUNDS):
        started = time.thread_time()
        for _ in range(CALLS):
            run()
        rounds.append((time.thread_time() - started) / CALLS)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
    return median(rounds)


def prepared(compiled: Compiled, given: dict[str, Tensor]) -> tuple[Ready, Quick]:
    """What the call of these inputs was worked out to; a stubbed GPU's where there is none."""
    compiled(None, **dict[str, Any](given))
    ready = compiled.ready(list(given.values()))
    if ready.quick is not None and next(iter(given.values())).is_cuda:
        return ready, ready.quick
    kernels = [compiled.built(kernel, ready.dims) for kernel in ready.plan.kernels]
    learned = [(k.kernel.name, [(names, _nothing) for names in k.tensors]) for k in kernels]
    ready.quick = on_gpu(ready, learned, list(given.values()), Device(lambda: -1, lambda index: 0, lambda: False))
    return ready, ready.quick


def _nothing(pointers: Sequence[int], stream: int) -> None:
    """A launch that launches nothing."""


def bare(quick: Quick, given: dict[str, Tensor], stream: int) -> Callable[[], object]:
    """The launches alone, on memory that was placed before."""
    outputs, addresses, block = quick.place(list(given.values()))
    chosen = [(again, pick(addresses)) for pick, again in quick.steps]

    def run() -> object:
        for again, own in chosen:
            again(own, stream)
        return outputs, block

    return run


def measure(name: str, target: str, dtype: str) -> str:
    """One case as a line: the whole call, the launches, and the difference."""
    compiled = compile(preset(name, **CASES[name]), target)
    device = compiled.target.device
    given: dict[str, Any] = dict(inputs(compiled.variant, T=64, H=4, HKV=1, D=64, DV=64, dtype=dtype, device=device))
    with torch.no_grad():
        _, quick = prepared(compiled, given)
        stream = torch.cuda.current_stream().cuda_stream if device == "cuda" else 0
        whole, launches = seconds(lambda: compiled(None, **given)), seconds(bare(quick, given, stream))
    all_, own, over = (f"{s * 1e6:6.1f} us" for s in (whole, launches, whole - launches))
    return f"{name:10} {all_} a call, {own} of it {len(quick.steps)} launches, {over} over"


def main() -> None:
    """Print a line per case."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cases", nargs="*", default=list(CASES))
    parser.add_argument("--target", default="auto")
    parser.add_argument("--dtype", default="bfloat16" if torch.cuda.is_available() else "float32")
    asked = parser.parse_args()
    for name in asked.cases:
        print(measure(name, asked.target, asked.dtype), flush=True)


if __name__ == "__main__":
    main()
