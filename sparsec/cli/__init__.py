"""The command line: `sparsec list | show | check | explain | compile | tune | bench | cache | doctor`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

TRACEBACK = "--traceback"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; 0 where all went well, 1 where a check failed, 2 where the request is wrong, 130 for Ctrl-C.

    A typed error becomes one message on the standard error; ``--traceback``, anywhere, shows where it comes from.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    from sparsec.cli.app import command
    from sparsec.cli.failure import is_expected, show

    try:
        command()([word for word in words if word != TRACEBACK], prog_name="sparsec")
    except SystemExit as done:
        return done.code if isinstance(done.code, int) else int(done.code is not None)
    except Exception as error:
        if TRACEBACK in words or not is_expected(error):
            raise
        show(error)
        return 2
    return 0
