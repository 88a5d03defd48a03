"""What the job leaves beside its report: declaration, graph, plan, the source of every kernel, the trial database."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from pathlib import Path

from sparsec.ir.variant import Variant
from sparsec.lower.registry import lower_kernel
from sparsec.plan.plan import Plan
from sparsec.runtime.compiled import Compiled
from sparsec.runtime.launch import source

DATABASE = "trials.db"


def save_texts(folder: Path, variant: Variant, graph: Variant, plan: Plan) -> None:
    """The declaration, the graph after passes and the plan, as text files."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "declaration.sparsec").write_text(variant.text())
    (folder / "after_passes.sparsec").write_text(graph.text())
    (folder / "plan.txt").write_text(plan.text())


def save_kernels(folder: Path, versions: Mapping[str, Compiled], plan: Plan, dims: Mapping[str, int]) -> None:
    """The source of every program, one file each, in a folder per version; files of an earlier run are replaced."""
    for version, compiled in versions.items():
        here = folder / version
        here.mkdir(parents=True, exist_ok=True)
        for old in here.glob("*.py"):
            old.unlink()
        for kernel in plan.kernels:
            schedule = compiled.schedule(kernel, dims)
            for step in lower_kernel(kernel.spec, schedule).steps:
                heading = f"# {kernel.name} for {compiled.target.name}\n# {schedule}\n"
                text = source(step, compiled.target)
                (here / f"{step.program.name}.py").write_text(heading + text)


def save_database(database: str | None, folder: Path) -> None:
    """A copy of the trial database; the tuner may go on with its own."""
    if database is None:
        return
    with sqlite3.connect(database) as original, sqlite3.connect(folder / DATABASE) as copy:
        original.backup(copy)
    original.close()
    copy.close()
