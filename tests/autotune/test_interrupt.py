"""A Ctrl-C that Python drops is heard at the next check; others raise at once; the handler of before comes back."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from sparsec.autotune.interrupt import heard


class Dying:
    """Ctrl-C falls into its destructor."""

    def __del__(self) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        for _ in range(1000):  # where Python notices
            pass


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_dropped_interrupt_is_heard_at_the_next_check() -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), heard() as check:
        check()
        dying = Dying()
        del dying
        reached = True
        check()
    assert reached and signal.getsignal(signal.SIGINT) is before


def test_others_raise_at_once() -> None:
    reached = False
    with pytest.raises(KeyboardInterrupt), heard():
        os.kill(os.getpid(), signal.SIGINT)
        for _ in range(1000):
            pass
        reached = True
    assert not reached


def test_another_thread_changes_nothing() -> None:
    seen: list[object] = []

    def run() -> None:
        with heard() as check:
            check()
            seen.append(signal.getsignal(signal.SIGINT))

    before = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [before]
