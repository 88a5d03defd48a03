"""`sparsec cache`: what is kept, whether it is intact, and throwing it away."""

from __future__ import annotations

import shutil
from typing import Annotated

import typer

from sparsec.cli.options import AsJson
from sparsec.cli.output import print_json, say, table


def app() -> typer.Typer:
    """The commands list, verify and clear."""
    made = typer.Typer(
        help="Look at, verify or clear the folder of built kernels and tuned records.", no_args_is_help=True
    )
    made.command("list")(list_entries)
    made.command("verify")(verify)
    made.command("clear")(clear)
    return made


def list_entries(as_json: AsJson = False) -> None:
    """List tuned records and built kernels."""
    from sparsec.cli.cached import entries
    from sparsec.runtime.env import Env

    found = entries(Env().cache_dir)
    if as_json:
        print_json([{"kind": e.kind, "file": str(e.path), "bytes": e.size, "what": e.what} for e in found])
    else:
        say(f"{Env().cache_dir}: {len(found)} entries")
        table(("kind", "KiB", "file", "what"), ((e.kind, f"{e.size / 1024:.1f}", e.path.name, e.what) for e in found))


def verify(as_json: AsJson = False) -> None:
    """Check the hash of every record and library; exit code 1 where one is corrupt, to be rebuilt when it is used."""
    from sparsec.cli.cached import entries
    from sparsec.runtime.env import Env

    found = entries(Env().cache_dir)
    wrong = [e for e in found if e.problem]
    if as_json:
        print_json({"checked": len(found), "corrupt": [{"file": str(e.path), "problem": e.problem} for e in wrong]})
    else:
        for e in wrong:
            say(f"corrupt {e.kind} {e.path}: {e.problem}")
        say(f"{len(found) - len(wrong)} of {len(found)} entries are intact")
    raise typer.Exit(1 if wrong else 0)


def clear(
    records: Annotated[
        bool, typer.Option("--records", help="Also the tuned records and trials, not only kernels.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: AsJson = False,
) -> None:
    """Delete built kernels, which are built again when they are needed; tuned results only with --records."""
    from sparsec.cli.cached import KERNELS, TUNED
    from sparsec.runtime.env import Env

    folder = Env().cache_dir
    doomed = [folder / name for name in (*KERNELS, *(TUNED if records else ())) if (folder / name).exists()]
    if doomed and not yes and as_json:
        raise typer.BadParameter("--json asks nothing, so it deletes nothing without --yes")
    if doomed and not yes:
        typer.confirm(f"Delete {', '.join(path.name for path in doomed)} in {folder}?", abort=True)
    for path in doomed:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    names = [path.name for path in doomed]
    print_json({"deleted": names}) if as_json else say(f"deleted {', '.join(names) or 'nothing'} in {folder}")
