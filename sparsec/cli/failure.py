"""What a user sees of an error: its own sentence, for errors that are about what the user gave."""

from __future__ import annotations


def is_expected(error: Exception) -> bool:
    """Whether an error is about what was asked for: our own typed errors, files that cannot be used, lack of memory."""
    ours = type(error).__module__.startswith("sparsec.")
    return isinstance(error, OSError) or is_memory(error) or (ours and not isinstance(error, AssertionError))


def is_memory(error: Exception) -> bool:
    """Whether something was too large for this machine; torch says so by a plain RuntimeError on a CPU."""
    torch_says = isinstance(error, RuntimeError) and any(said in str(error) for said in LACK)
    return isinstance(error, MemoryError) or torch_says


LACK = ("can't allocate memory", "out of memory", "Storage size calculation overflowed")


def show(error: Exception) -> None:
    """One message on the standard error."""
    from rich.console import Console

    Console(stderr=True, soft_wrap=True, highlight=False).print(f"error: {message(error)}", markup=False)


def message(error: Exception) -> str:
    """The error's sentence; of a file, its name and the system's reason; of lack of memory, what to do."""
    if is_memory(error):
        return f"too large for this machine, set smaller dims: {str(error).splitlines()[0]}"
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return str(error)
