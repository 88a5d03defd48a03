"""A tile program as readable Triton source: one file, one kernel, the same text for the same program and schedule."""

from __future__ import annotations

from sparsec.backends.triton.descriptors import descriptors
from sparsec.backends.triton.gluon.emit import emit as emit_roles
from sparsec.backends.triton.legal import check
from sparsec.backends.triton.printer import Printer
from sparsec.tile.chain import Chain
from sparsec.tile.language import Program
from sparsec.tile.schedule import Schedule


def emit(program: Program, schedule: Schedule, chain: Chain | None = None) -> str:
    """Triton source of a program: imports, the helpers that it needs, and one kernel named after the program.

    A kernel of a ``chain`` lets the next launch start, and waits for the one before.

    The kernel's arguments are tensors, parameters, strides, descriptors (``sparsec.backends.triton.arguments``). The
    text works unchanged on Triton 3.6 and 3.9. Raises ScheduleError where Triton cannot express the program.
    """
    check(program)
    if schedule.has_roles:
        return emit_roles(program, schedule, chain)
    return Printer(program, descriptors(program, schedule.descriptors, schedule.whole_rows), chain).source()
