"""Compiling in several processes at once; for a GPU one after another."""

import contextlib
import fcntl
from collections.abc import Iterator

import jax

# A file that whoever's turn it is has locked; None where nobody need wait.
_turns: str | None = None


def take_turns(path: str | None) -> None:
    """Has `compiled` wait for whoever has locked the file at `path`."""
    global _turns
    _turns = path


def compiled(lowered: jax.stages.Lowered) -> jax.stages.Compiled:
    """What is lowered, compiled when it is this process's turn.

    While XLA compiles for a GPU it times products, which no other may disturb. Tracing
    and lowering are done before, and so concurrently.
    """
    with _turn():
        return lowered.compile()


@contextlib.contextmanager
def _turn() -> Iterator[None]:
    if _turns is None:
        yield
        return
    with open(_turns, "rb") as file:  # Whose lock is free again if this process dies.
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
