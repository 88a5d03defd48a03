"""`sparsec explain`: what a variant costs, without running it and without a GPU."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated

import typer

from sparsec.cli.options import AsJson, Dtype, TargetName, Words
from sparsec.cli.output import print_json, say, table

if TYPE_CHECKING:
    from sparsec.runtime.explain import Explanation, KernelExplanation


def explain(
    words: Words,
    target: TargetName = "auto",
    dtype: Dtype = "",
    resources: Annotated[
        bool, typer.Option(help="Compile GPU kernels to read registers, spills and shared memory.")
    ] = True,
    gradients: Annotated[bool, typer.Option(help="The backward too: its kernels, and the memory of both.")] = False,
    as_json: AsJson = False,
) -> None:
    """Formulas and numbers for FLOPs, bytes, tiles and peak memory; compiled resources; predicted time on a target.

    Needs no GPU: `--target triton:sm_90` predicts for an H100 on any machine.
    """
    from sparsec.cli.setting import setting
    from sparsec.runtime.explain import explain as explained
    from sparsec.runtime.peak import float_inputs

    chosen = setting(words, target, dtype)
    floats = float_inputs(chosen.compiled.variant)
    found = explained(chosen.compiled, chosen.dims, chosen.dtype, resources, floats if gradients else ())
    if as_json:
        return print_json(found.to_dict())
    _show(found)
    if not any("=" in word and word.partition("=")[0].isupper() for word in words):
        say("\nThese dims are small defaults, at which launches are most of the time: name yours, T=8192 H=16 D=128 …")


def _show(found: Explanation) -> None:
    dims = " ".join(f"{name}={size}" for name, size in sorted(found.dims.items()))
    say(f"{found.variant} on {found.target}, {found.dtype}, {dims}\n")
    for kernel in found.kernels:
        _show_kernel(kernel)
    say("memory", style="bold")
    say(f"  inputs {amount(found.inputs, 'B')}, peak of all else {amount(found.peak, 'B')}")
    if found.training:
        held = found.training
        say(
            f"  forward {amount(held.forward, 'B')}, backward {amount(held.backward, 'B')} beside what the forward kept"
        )
        say(f"  kept for the backward: {held.kept_formula} bytes = {amount(held.kept, 'B')}")
        say(f"  every buffer of the backward: {held.backward_formula} bytes")
    say(f"  every buffer of the plan: {found.peak_formula} bytes")
    for extent in found.offsets:
        say(f"  {extent}")
    _show_order(found)
    for note in found.notes:
        say(f"note: {note}")
    rows = [(k.name, _ms(k.seconds), _ms(k.floor_s), _bound(k)) for k in found.kernels]
    rows.append(("all", _ms(found.seconds), _ms(sum(k.floor_s for k in found.kernels)), ""))
    say("")
    table(("kernel", "predicted ms", "bytes alone ms", "made of"), rows)


def _show_order(found: Explanation) -> None:
    """What deterministic algorithms cost, where a kernel could do without an order or a backward was asked for."""
    if not (found.order or found.training):
        return
    say("torch.use_deterministic_algorithms(True)", style="bold")
    for price in found.order:
        say(f"  {price}")
    added = [price.seconds for price in found.order]
    if None in added:
        return say("  this call is refused then: ask for other gradients")
    total = sum(x for x in added if x is not None)
    say(f"  adds {total * 1e3:.3f} ms to a call" if total else "  costs nothing: every sum has one order as it is")


def _show_kernel(kernel: KernelExplanation) -> None:
    say(f"{kernel.name}: {kernel.kind}", style="bold")
    for name, (formula, value) in kernel.formulas.items():
        if value:
            say(
                f"  {name:6} {formula} = {amount(value, 'FLOP' if name == 'flops' else 'B' if name == 'bytes' else '')}"
            )
    for text in kernel.reads:
        say(f"  reads  {text}")
    for name, grid in kernel.programs.items():
        say(f"  grid   {name}: {grid}{_needs(kernel.resources.get(name))}")
    if kernel.steps:
        say(f"  steps  {kernel.steps} iterations of loops over the whole grid")


def _needs(found: object) -> str:
    if isinstance(found, str):
        return f"; does not compile: {found}"
    if not isinstance(found, dict):
        return ""
    spills = f", {found['spills']} bytes spilled" if found["spills"] else ""
    wgmma = ", wgmma" if found["wgmma"] else ""
    return f"; {found['registers']} registers, {found['shared']} bytes shared{spills}{wgmma}"


def _bound(kernel: KernelExplanation) -> str:
    """The parts of the time from the largest down, in ms."""
    parts = sorted(kernel.parts.items(), key=lambda part: -part[1])
    return ", ".join(f"{name} {_ms(value)}" for name, value in parts if value > 0.02 * kernel.seconds)


def _ms(seconds: float) -> str:
    """Milliseconds with three decimals, and with two digits where that would be none: 26.700, 0.435, 0.00012."""
    ms = seconds * 1e3
    return f"{ms:.{max(3, 1 - math.floor(math.log10(ms)))}f}" if ms > 0 else "0"


def amount(value: float, unit: str) -> str:
    """A number with three digits and a unit: 4.83 GFLOP, 33.6 MB."""
    for limit, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= limit:
            return f"{value / limit:.3g} {prefix}{unit}"
    return f"{value:g} {unit}".rstrip()
