"""`sparsec doctor`: what this machine has, what can run here, and which known faults concern it."""

from __future__ import annotations

from sparsec.cli.options import AsJson
from sparsec.cli.output import print_json, say, table


def doctor(as_json: AsJson = False) -> None:
    """Report the machine, the versions, the targets, known miscompiles and the state of the cache folder."""
    from sparsec.cli.machine import findings

    found = findings()
    if as_json:
        print_json([{"subject": f.subject, "finding": f.finding, "state": f.state} for f in found])
        return
    table(("", "", ""), ((f.subject, f.state, f.finding) for f in found))
    worst = [f for f in found if f.state == "warn"]
    say(f"{len(worst)} to look at" if worst else "nothing stands in the way")
