"""What a user sees of an error: its own sentence, for errors that are about what the user gave."""

from __future__ import annotations


def is_expected(error: Exception) -> bool:
    """Whether an error is about what was asked for: sparsec's own typed errors, and files that cannot be used."""
    ours = type(error).__module__.startswith("sparsec.")
    return isinstance(error, OSError) or (ours and not isinstance(error, AssertionError))


def show(error: Exception) -> None:
    """One message on the standard error."""
    from rich.console import Console

    Console(stderr=True, soft_wrap=True, highlight=False).print(f"error: {message(error)}", markup=False)


def message(error: Exception) -> str:
    """The error's sentence; of a file, its name and the system's reason."""
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return str(error)
