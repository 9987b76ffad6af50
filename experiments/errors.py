"""The one exception that means: the user can fix this."""

import contextlib
from collections.abc import Iterator


class RunError(Exception):
    """Ends a command with its message as one line on stderr and no traceback."""

    status = 1
    """The process's exit status."""


def require_no_pattern(flag: str, path: str, library: str) -> None:
    """Checks that `path` has nothing that `library` takes for a pattern of names.

    Raises:
        RunError: it has; what was written there would not be found again.
    """
    found = [character for character in "[*?" if character in path]
    if found:
        raise RunError(
            f"{flag}: expected a path without {' '.join(found)}, which {library} takes "
            f"for a pattern where it looks for what it wrote, got {path}"
        )


@contextlib.contextmanager
def within_memory(advice: str) -> Iterator[None]:
    """For code that may run out of memory, which JAX reports in several ways.

    Raises:
        RunError: it did; the message says what was requested, and gives the `advice`.
    """
    try:
        yield
    except RunError:  # It may tell of a full disk, RESOURCE_EXHAUSTED to TensorStore.
        raise
    except Exception as error:
        text = str(error)
        words = ("Out of memory", "out of memory", "RESOURCE_EXHAUSTED")
        if not isinstance(error, MemoryError) and not any(w in text for w in words):
            raise
        wanted = text.partition("\n")[0] or type(error).__name__
        raise RunError(f"out of memory ({wanted}); {advice}") from error


@contextlib.contextmanager
def naming(flag: str) -> Iterator[None]:
    """For code that `flag` asks for: a RunError in it begins with the flag's name."""
    try:
        yield
    except RunError as error:
        raise RunError(f"{flag}: {error}") from error
