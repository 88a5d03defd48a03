"""A joint plan cut in two: what the outputs need, and the rest, which waits for their gradients."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from sparsec.plan.plan import Buffer, Kernel, Plan


@dataclass(frozen=True, slots=True)
class Split:
    """The halves of a joint plan.

    Attributes:
        forward: its outputs are the variant's, then the saved buffers that are none of these.
        backward: its inputs are the joint plan's, as far as it reads them, and the saved buffers.
        saved: what the forward half writes and the backward half reads or returns, outputs of the variant included.
    """

    forward: Plan
    backward: Plan
    saved: tuple[str, ...]


def split(plan: Plan, forward_outputs: Sequence[str]) -> Split:
    """Cut a plan whose outputs begin with ``forward_outputs``; the others are gradients, inputs among them left out."""
    outputs = tuple(forward_outputs)
    assert plan.outputs[: len(outputs)] == outputs, (plan.outputs, outputs)
    gradients = tuple(n for n in plan.outputs[len(outputs) :] if plan.buffer(n).role != "input")
    needed = _needed(plan.kernels, outputs)
    first = [k for k in plan.kernels if k.name in needed]
    rest = [k for k in plan.kernels if k.name not in needed]
    crossing = {name for k in first for name in k.writes} & ({n for k in rest for n in k.reads} | {*gradients})
    saved = tuple(b.name for b in plan.buffers if b.name in crossing)
    return Split(
        _half(plan, "forward", first, (*outputs, *(n for n in saved if n not in outputs)), frozenset()),
        _half(plan, "backward", rest, gradients, crossing),
        saved,
    )


def _needed(kernels: Sequence[Kernel], outputs: Iterable[str]) -> set[str]:
    """The names of the kernels that some buffers need, directly or not."""
    writer = {name: kernel for kernel in kernels for name in kernel.writes}
    found: set[str] = set()
    waiting = [writer[name] for name in outputs if name in writer]
    while waiting:
        kernel = waiting.pop()
        if kernel.name not in found:
            found.add(kernel.name)
            waiting += [writer[name] for name in kernel.reads if name in writer]
    return found


def _half(plan: Plan, half: str, kernels: Sequence[Kernel], outputs: tuple[str, ...], given: Iterable[str]) -> Plan:
    """The plan of some of the kernels; ``given`` are buffers that the other half wrote."""
    touched = {name for k in kernels for name in (*k.reads, *k.writes)} | {*outputs}
    own = [_as(b, outputs, given) for b in plan.buffers if b.name in touched]
    return replace(plan, variant=f"{plan.variant}_{half}", kernels=tuple(kernels), buffers=tuple(own), outputs=outputs)


def _as(buffer: Buffer, outputs: Sequence[str], given: Iterable[str]) -> Buffer:
    """A buffer in its role in one half."""
    if buffer.role == "input" or buffer.name in given:
        return replace(buffer, role="input")
    return replace(buffer, role="output" if buffer.name in outputs else "temporary")
