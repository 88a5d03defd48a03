"""`sparsec show`: any of the five representations as text, and what each pass changed."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from sparsec.cli.options import AsJson, Dtype, TargetName, Words
from sparsec.cli.output import print_json, say

if TYPE_CHECKING:
    from sparsec.cli.naming import Named
    from sparsec.cli.setting import Setting
    from sparsec.ir.variant import Variant


class Level(StrEnum):
    """The five representations, from what was declared to what runs, and the decode step with its cache."""

    GRAPH = "graph"
    PASSES = "passes"
    PLAN = "plan"
    TILE = "tile"
    SOURCE = "source"
    STREAM = "stream"


def show(
    words: Words,
    level: Annotated[Level, typer.Option(help="Which representation.")] = Level.GRAPH,
    passes: Annotated[bool, typer.Option("--passes", help="The unified diff of each pass instead.")] = False,
    kernel: Annotated[str, typer.Option(help="Only this kernel of the plan, at the levels tile and source.")] = "",
    target: TargetName = "auto",
    dtype: Dtype = "",
    as_json: AsJson = False,
) -> None:
    """Print a variant: its graph, the graph after passes, the plan, the tile programs, the source, the decode step."""
    if dtype:
        from sparsec.cli.setting import float_dtype

        float_dtype(dtype)  # at every level, though graphs have none
    if passes or level is Level.GRAPH:
        from sparsec.cli.naming import named

        asked = named(words)
        _refused(asked, target, kernel)
        if passes:
            return _diffs(asked.variant, as_json)
        parts = {"graph": asked.variant.text()}
    else:
        from sparsec.cli.setting import setting

        parts = _parts(setting(words, target, dtype), level, kernel)
    if as_json:
        print_json({"level": level.value, "parts": parts})
    else:
        say("\n\n".join(text.rstrip("\n") for text in parts.values()))


def _refused(asked: Named, target: str, kernel: str) -> None:
    """What other levels do not take is taken by none: unknown targets, dims and kernels, though graphs have none."""
    from sparsec.cli.setting import Setting, at
    from sparsec.runtime.compiled import compile
    from sparsec.runtime.target import find

    find(target)
    if asked.dims or kernel:
        compiled = compile(asked.variant, target)
        _kernel(Setting(compiled, at(compiled, asked.dims), "float32"), kernel)


def _diffs(variant: Variant, as_json: bool) -> None:
    from sparsec.passes.observers import Diffs
    from sparsec.passes.pipeline import PIPELINE, run

    diffs = Diffs()
    run(variant, PIPELINE, (diffs,))
    if as_json:
        print_json([{"pass": name, "diff": text} for name, text in diffs.found])
    else:
        say("\n\n".join(f"# {name}\n{text or '# changes nothing'}" for name, text in diffs.found))


def _parts(chosen: Setting, level: Level, kernel: str) -> dict[str, str]:
    _kernel(chosen, kernel)
    if level is Level.PASSES:
        return {"passes": chosen.compiled.graph.text()}
    if level is Level.PLAN:
        return {"plan": chosen.plan.text()}
    if level is Level.STREAM:
        from sparsec.runtime.decode.explain import describe

        return {"stream": describe(chosen.compiled, chosen.dims, chosen.dtype)}
    return {name: text for name, text in _programs(chosen, level, kernel)}


def _kernel(chosen: Setting, name: str) -> None:
    """Refuse a name that no kernel of the plan has; "" names all."""
    from sparsec.ir.error import InputError
    from sparsec.ir.suggest import did_you_mean

    if name and name not in (known := [k.name for k in chosen.plan.kernels]):
        raise InputError(name, "no such kernel", "name a kernel of the plan", did_you_mean(name, known))


def _programs(chosen: Setting, level: Level, kernel: str) -> list[tuple[str, str]]:
    """(program, text) for every program of the plan, in launch order, or of one kernel."""
    from sparsec.lower.registry import lower_kernel
    from sparsec.runtime.launch import source
    from sparsec.tile.printer import to_text

    compiled, found = chosen.compiled, []
    for k in (k for k in chosen.plan.kernels if kernel in ("", k.name)):
        for step in lower_kernel(k.spec, compiled.schedule(k, chosen.dims)).steps:
            text = to_text(step.program) if level is Level.TILE else source(step, compiled.target)
            found.append((step.program.name, text))
    return found
