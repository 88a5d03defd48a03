"""What a call costs the host beyond its launches: `python -m sparsec.benchmarks.overhead [--target cuda]`.

A GPU runs the kernels, on inputs so small that it is always waiting for the host. Elsewhere launches do nothing, and
the rest is what a call for a GPU does, on the CPU's memory. Each figure is the median of many rounds' means, in
microseconds of this thread:

- call: the whole of it, by name, under ``torch.no_grad()``;
- Triton: the same launches alone, on memory placed before, each through the launcher that Triton made for the kernel;
- C++: the same launches alone, from the C++ module, where there is one;
- over: the call without the launches as it makes them; over Triton: without Triton's;
- torch: what ``torch.empty`` takes for as many tensors as the call allocates.
"""

import argparse
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from sparsec.backends.triton.packed import Packed
from sparsec.frontends.preset import preset
from sparsec.runtime.cache import usable
from sparsec.runtime.compiled import Compiled, compile
from sparsec.runtime.env import Env
from sparsec.runtime.inputs import inputs
from sparsec.runtime.native.build import native
from sparsec.runtime.native.prepare import Memory
from sparsec.runtime.native.prepare import prepared as in_one_step
from sparsec.runtime.quick import Device, Quick, on_gpu
from sparsec.runtime.ready import Ready

CASES: dict[str, dict[str, object]] = {
    "streaming": {"window": 64},
    "msa": {"pattern": "window", "window": 64, "slots": 4},
    "hsa": {"chunk": 16, "k": 3},
    "nsa": {"block": 16, "k": 4, "size": 16, "stride": 16, "window": 16},
}
ROUNDS, CALLS = 41, 50  # so few that a queue of launches never fills up

Row = dict[str, float]


def seconds(run: Callable[[], object], clock: Callable[[], float] = time.thread_time) -> float:
    """Seconds for one call, of this thread where no clock is given: the median of several rounds' means."""
    run()
    rounds = []
    for _ in range(ROUNDS):
        started = clock()
        for _ in range(CALLS):
            run()
        rounds.append((clock() - started) / CALLS)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
    return median(rounds)


class Nothing:
    """A launch that launches nothing, on so many tensors."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __call__(self, pointers: Sequence[int], stream: int) -> None:
        """Nothing."""

    def packed(self) -> Packed:
        """As a kernel that takes addresses alone."""
        places = tuple(8 * n for n in range(self.count))
        sizes, pointers = (8,) * self.count, tuple((place, n) for n, place in enumerate(places))
        return Packed(1, (1, 1, 1), 128, 0, bytes(8 * self.count), places, sizes, pointers, ())


def prepared(compiled: Compiled, given: dict[str, Tensor]) -> tuple[Ready, Quick]:
    """What the call of these inputs was worked out to; a stubbed GPU's where there is none."""
    compiled(None, **dict[str, Any](given))
    tensors = list(given.values())
    ready = compiled.ready(tensors)
    if ready.quick is None or not tensors[0].is_cuda:
        stub(compiled, ready, tensors)
        compiled.ready(tensors)
    assert ready.quick is not None
    return ready, ready.quick


def stub(compiled: Compiled, ready: Ready, tensors: Sequence[Tensor]) -> None:
    """Give a call the quick way of a GPU whose launches do nothing, in C++ where that can be built."""
    module = None if Env().python_launches else native(usable(Env().cache_dir))
    if module is not None:
        module.launch_with(None)
    compiled.tables.module = module
    kernels = [compiled.built(kernel, ready.dims) for kernel in ready.plan.kernels]
    learned = [(k.kernel.name, [(names, Nothing(len(names))) for names in k.tensors]) for k in kernels]
    hooks = SimpleNamespace(launch_enter_hook=None, launch_exit_hook=None)
    gpu = Device(lambda: -1, lambda index: 0, lambda: False, module, hooks)
    ready.quick = on_gpu(ready, learned, tensors, gpu)


def bare(quick: Quick, given: Mapping[str, Tensor], stream: int) -> Callable[[], object]:
    """The launches alone, on memory that was placed before."""
    outputs, addresses, block = quick.place(list(given.values()))
    chosen = [(again, pick(addresses)) for pick, again in quick.steps]

    def run() -> object:
        for again, own in chosen:
            again(own, stream)
        return outputs, block

    return run


def bare_in_one_step(ready: Ready, quick: Quick, given: Mapping[str, Tensor], module: Any) -> Callable[[], object]:
    """The launches alone, from C++, on memory that was placed before."""
    tensors = list(given.values())
    outputs, addresses, block = quick.place(tensors)
    rest = len(addresses) - len(tensors) - len(outputs)
    places = [] if block is None else [block[at - block.data_ptr() :] for at in addresses[-rest:]]
    everything = [*tensors, *outputs, *places]
    named = [(pick(range(len(everything))), again) for pick, again in quick.steps]
    hooks = SimpleNamespace(launch_enter_hook=None, launch_exit_hook=None)
    call = in_one_step(module, named, Memory(everything, (), (), None, ()), hooks)
    return lambda: call.run(everything)


def measure(name: str, target: str, dtype: str) -> tuple[Row, int]:
    """One case in microseconds, and its number of launches."""
    compiled = compile(preset(name, **CASES[name]), target)
    device = compiled.target.device
    given: dict[str, Any] = dict(inputs(compiled.variant, T=64, H=4, HKV=1, D=64, DV=64, dtype=dtype, device=device))
    with torch.no_grad():
        ready, quick = prepared(compiled, given)
        stream = torch.cuda.current_stream().cuda_stream if device == "cuda" else 0
        found = {"call": seconds(lambda: compiled(None, **given)), "Triton": seconds(bare(quick, given, stream))}
        least = found["Triton"]
        if quick.native is not None:
            least = found["C++"] = seconds(bare_in_one_step(ready, quick, given, compiled.tables.module))
        outputs, _, block = quick.place(list(given.values()))
        shapes = [x.shape for x in (*outputs, *([] if block is None else [block]))]
        found |= {"over": found["call"] - least, "over Triton": found["call"] - found["Triton"]}
        found["torch"] = seconds(lambda: [torch.empty(s, device=device, dtype=torch.bfloat16) for s in shapes])
    return {key: value * 1e6 for key, value in found.items()}, len(quick.steps)


def main() -> None:
    """Print a line per case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", default=list(CASES))
    parser.add_argument("--target", default="auto")
    parser.add_argument("--dtype", default="bfloat16" if torch.cuda.is_available() else "float32")
    parser.add_argument("--train", action="store_true", help="training steps instead of calls without gradients")
    parser.add_argument("--out", type=Path, help="where to write the rows as JSON")
    asked, rows, way = parser.parse_args(), {}, measure
    if asked.train:
        from sparsec.benchmarks.overhead_training import measure as way
    for name in asked.cases:
        rows[name], launches = way(name, asked.target, asked.dtype)
        told = ", ".join(f"{key} {value:.1f}" for key, value in rows[name].items())
        print(f"{name:10} {launches} launches, us: {told}", flush=True)
    if asked.out:
        asked.out.write_text(json.dumps(rows))


if __name__ == "__main__":
    main()
