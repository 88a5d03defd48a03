"""Runs tile cases under Triton's interpreter: ``python -m sparsec.testing.triton.tiles FOLDER NAME…``.

Needs TRITON_INTERPRET=1 in the environment. Prints one JSON object: the error of each case against its reference.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from sparsec.backends.triton.build import arguments, launch, load
from sparsec.backends.triton.emit import emit
from sparsec.testing.tile.cases import CASES
from sparsec.testing.triton.pace import keep_pace
from sparsec.tile.scalars import grid_of
from sparsec.tile.schedule import Schedule


def error_of(name: str, schedule: Schedule, folder: Path) -> float:
    """The largest relative error of a case's outputs."""
    case = CASES[name]()
    tensors = case.tensors()
    kernel = load(emit(case.program, schedule), case.program.name, folder)
    args = arguments(case.program, schedule, tensors, case.params)
    launch(kernel, grid_of(case.program, case.params), args, schedule)
    return case.error(tensors)


def main(folder: str, *names: str) -> None:
    """Run cases by name, ``name+`` through descriptors."""
    keep_pace()
    errors = {n: error_of(n.rstrip("+"), Schedule(descriptors=n.endswith("+")), Path(folder)) for n in names}
    print(json.dumps(errors))


if __name__ == "__main__":
    main(*sys.argv[1:])
