"""What the job prints while it runs; a quiet screen prints nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from sparsec.autotune.job.machine import busy
from sparsec.autotune.job.outcome import Outcome
from sparsec.autotune.job.rows import rows
from sparsec.autotune.progress import Show, bar
from sparsec.autotune.report import Report
from sparsec.ir.variant import Variant
from sparsec.plan.plan import Plan
from sparsec.runtime.compiled import Compiled


class Screen:
    """A terminal; ``quiet`` for none."""

    def __init__(self, quiet: bool = False) -> None:
        from rich.console import Console

        self.console, self.quiet = Console(highlight=False, markup=False, quiet=quiet), quiet

    def heading(self, title: str, words: str = "") -> None:
        """The start of a part."""
        self.console.print()
        self.console.print(title, style="bold", end="" if words else "\n")
        if words:
            self.console.print(f": {words}", style="dim", soft_wrap=True)

    def step(self, words: str) -> None:
        """One line for something that takes seconds."""
        self.console.print(f"… {words}", style="dim")

    def text(self, words: str) -> None:
        """Text that keeps its lines."""
        self.console.print(words.rstrip("\n"), soft_wrap=True)

    def declaration(
        self,
        command: str,
        variant: Variant,
        compiled: Compiled,
        dims: Mapping[str, int],
        dtype: str,
        notes: Sequence[str],
    ) -> None:
        """The variant as text, where it runs and on what."""
        self.heading("declaration", command)
        self.text(variant.text())
        shown = " ".join(f"{n}={size}" for n, size in dims.items() if n != "q_offset")
        self.text(f"on {compiled.target.name}, {dtype}, {shown}")
        for note in notes:
            self.text(f"note: {note}")

    def passes(self, diffs: Sequence[tuple[str, str]], graph: Variant) -> None:
        """What each pass changed, and the graph after the last one where that is another than the declaration."""
        self.heading("passes", ", ".join(f"{name} {'changes' if text else 'leaves'} the graph" for name, text in diffs))
        for _, text in diffs:
            if text:
                self.text(text)
        if any(text for _, text in diffs):
            self.heading("graph after passes")
            self.text(graph.text())
        else:
            self.text("the graph after passes is the declaration: it is in normal form already")

    def plan(self, plan: Plan) -> None:
        """The kernels and buffers."""
        self.heading("plan", f"{len(plan.kernels)} kernel{'s' if len(plan.kernels) > 1 else ''}")
        self.text(plan.text())

    @contextmanager
    def bar(self) -> Iterator[Show | None]:
        """A progress bar with the time left."""
        if self.quiet:
            yield None
            return
        with bar() as show:
            yield show

    def tuned(self, report: Report) -> None:
        """What tuning found."""
        self.text(str(report))

    def table(self, outcomes: Sequence[Outcome], last: Outcome) -> None:
        """The one table, and what there is to know of the machine that the last outcome was measured on."""
        from rich.table import Table

        self.heading("results", last.machine)
        for note in busy(last.load):
            self.text(f"note: {note}")
        made = Table(box=None, pad_edge=False, header_style="bold")
        for name in ("", *(o.name for o in outcomes)):
            made.add_column(name, overflow="fold")
        for row in rows(outcomes):
            made.add_row(*row)
        self.console.print(made)

    def files(self, folder: Path, outcomes: Sequence[Outcome], key: str) -> None:
        """Where to look: the report, the last outcome's folder, and the exported file of every earlier one."""
        self.heading("files")
        self.text(f"{folder / 'report.html'}: pictures, trials, sources; {folder / key}: declaration, plan, kernels")
        for path in (folder / o.key / f"{o.name}.py" for o in outcomes if o.key != key):
            if path.is_file():
                self.text(f"{path}: the tuned kernels with a launcher")
