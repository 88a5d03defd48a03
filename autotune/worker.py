"""The process that compiles: jobs come in through a pipe, results go out. Run as ``python -m sparsec.autotune.worker``.

It is a plain child process, started by name and not by forking: TVM's threads do not survive a fork, and the user's
script is not run a second time.
"""

from __future__ import annotations

import os
import signal
import sys
from multiprocessing.connection import Connection


def serve(pipe: Connection) -> None:
    """Answer jobs until the tuner closes the pipe or is gone."""
    from sparsec.autotune.jobs import perform

    pipe.send(None)
    while True:
        try:
            job = pipe.recv()
            pipe.send(perform(job))
        except (EOFError, BrokenPipeError, ConnectionResetError):
            return


def die_with_the_tuner() -> None:
    """Ask Linux to end this process when its parent ends, even in the middle of a compilation."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def main() -> None:
    """Serve the pipe whose file number is the first argument, at a lower priority than whoever measures."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    die_with_the_tuner()
    os.nice(5)
    for name in sys.argv[2:]:
        __import__(name)
    serve(Connection(int(sys.argv[1])))


if __name__ == "__main__":
    main()
