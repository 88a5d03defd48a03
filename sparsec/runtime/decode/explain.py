"""A decode step in words: what the cache keeps, what a step launches, and what bit-for-bit equality costs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from sparsec.lower.decode.company import ALONE, Company, company
from sparsec.lower.decode.schedules import lower
from sparsec.plan.plan import Kernel
from sparsec.plan.specs import Summarise
from sparsec.runtime.decode.evicting import EvictingDecoder
from sparsec.runtime.decode.kernels import worked_out
from sparsec.runtime.decode.space import by_tokens, for_steps
from sparsec.scalar.evaluate import evaluate
from sparsec.tile.scalars import grid_of
from sparsec.tile.schedule import Schedule

if TYPE_CHECKING:
    from sparsec.runtime.compiled import Compiled
    from sparsec.runtime.decode.decoder import Decoder


def describe(compiled: Compiled, dims: Mapping[str, int], dtype: str) -> str:
    """Lines for ``sparsec show --level stream``: one new token of every sequence, after as many as ``dims`` say."""
    decoder: Decoder | EvictingDecoder = compiled.decoder
    if isinstance(decoder, EvictingDecoder):
        return f"cache of {compiled.variant.name}\n{decoder.describe(dims, dtype)}"
    one = {decoder.streamed.keys: compiled.lengths.key_count(dims), **dims, decoder.streamed.queries: 1}
    one["q_offset"] = one.get(decoder.streamed.keys, 1) - 1
    lines = [f"cache of {compiled.variant.name}", decoder.spec.text().rstrip("\n")]
    lines.append(f"  bytes of a sequence of {one[decoder.streamed.keys]} tokens: {_bytes(compiled, one, dtype)}")
    batch, plan = one.get("B", 1), decoder.step.plan(one, dtype)
    lines.append(f"step for {batch} x 1 new token on {compiled.target.processors} processors")
    ahead = decoder.ahead.plan(one, dtype).kernels if decoder.ahead is not None else ()
    lines += [f"  {kernel.name}: of the new tokens, before they join the cache" for kernel in ahead]
    found = {k.name: decoder.step.schedule(k, one) for k in plan.kernels}
    steps = [(k, for_steps(k.spec, found[k.name], compiled.target, batch, 1)) for k in plan.kernels]
    beside = company(steps, plan.outputs)
    maps = worked_out(steps, plan.outputs) if decoder.spec.states else {}
    for kernel, quick in steps:
        if maps.keys() & set(kernel.writes):
            lines.append(f"  {kernel.name}: worked out by the scans that read it")
            continue
        words = _launches(kernel, quick, one, beside[kernel.name])
        lines.append(f"  {kernel.name}: {words}")
        exact = _launches(kernel, by_tokens(kernel.spec, found[kernel.name]), one)
        if exact != words:
            lines.append(f"      deterministic: {exact}")
    return "\n".join(lines) + "\n"


def _bytes(compiled: Compiled, dims: Mapping[str, int], dtype: str) -> int:
    decoder = compiled.decoder
    return decoder.spec.nbytes(dims, dims[decoder.streamed.keys], 4 if dtype == "float32" else 2)


def _launches(kernel: Kernel, schedule: Schedule, dims: Mapping[str, int], beside: Company = ALONE) -> str:
    """The programs of each launch under a schedule."""
    if isinstance(kernel.spec, Summarise):
        count = (kernel.spec.size - 1) // kernel.spec.stride + 1
        return f"at most {count} window{'s' * (count > 1)} brought up to date"
    lowered = lower(kernel.spec, schedule, beside)
    params = {name: int(evaluate(value, dims)) for name, value in kernel.params}
    params |= {name: int(evaluate(value, params)) for name, value in lowered.params}
    grids = [grid_of(step.program, params) for step in lowered.steps]
    return "programs " + ", then ".join(str(_product(grid)) for grid in grids)


def _product(grid: tuple[int, ...]) -> int:
    count = 1
    for extent in grid:
        count *= extent
    return count
