"""`sparsec list`: the presets, or one preset's knobs."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

import typer

from sparsec.cli.options import AsJson
from sparsec.cli.output import print_json, say, table


def list_presets(
    name: Annotated[str, typer.Argument(help="A preset whose knobs to show; all presets without it.")] = "",
    as_json: AsJson = False,
) -> None:
    """List the presets, or the knobs of one: names, defaults, meanings with their units."""
    from sparsec.frontends.preset import find, presets

    found = [find(name)] if name else list(presets())
    if as_json:
        print_json([_as_dict(preset) for preset in found])
    elif name:
        say(f"{found[0].name}: {found[0].summary}\n")
        table(("knob", "default", "meaning"), ((k.name, k.default, _meaning(k)) for k in found[0].knobs))
    else:
        table(("preset", "what it is"), ((p.name, p.summary) for p in found))
        say("\n`sparsec list hsa` shows the knobs of hsa.")


def _as_dict(preset: Any) -> dict[str, Any]:
    return {"name": preset.name, "summary": preset.summary, "knobs": [asdict(knob) for knob in preset.knobs]}


def _meaning(knob: Any) -> str:
    return f"{knob.meaning} One of {', '.join(knob.choices)}." if knob.choices else knob.meaning
