"""The commands under one name. Each lives in a file of its own and imports what it needs when it runs."""

from __future__ import annotations

from typing import Any

import typer

from sparsec.cli import bench, cache, check, doctor, explain, export, presets, show, tune

ABOUT = """Declare a sparse-memory attention layer; get checked and tuned kernels.

A variant is named by a preset with knobs and dims, `hsa chunk=64 k=8 T=4096 H=16`, by a file, `mine.sparsec`, or by a
Python file and a name in it, `mine.py:local`. `sparsec list` shows the presets and their knobs.

`--traceback`, anywhere, shows where an error comes from.
"""


def app() -> typer.Typer:
    """The application with every command."""
    made = typer.Typer(
        help=ABOUT, no_args_is_help=True, pretty_exceptions_enable=False, add_completion=False, rich_markup_mode=None
    )
    made.command("list")(presets.list_presets)
    made.command("show")(show.show)
    made.command("check")(check.check)
    made.command("explain")(explain.explain)
    made.command("compile")(export.export)
    made.command("tune")(tune.tune)
    made.command("bench")(bench.bench)
    made.add_typer(cache.app(), name="cache")
    made.command("doctor")(doctor.doctor)
    return made


def command() -> Any:
    """The application as one callable of arguments."""
    return typer.main.get_command(app())
