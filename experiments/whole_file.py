"""Writing a file whole or not at all."""

import os
import tempfile

from experiments.errors import RunError


def write_whole(path: str, content: bytes) -> None:
    """Writes beside `path` first; what was there stays until all is written.

    Raises:
        RunError: it can't be written.
    """
    temporary = f"{path}.tmp"
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        if os.path.isfile(temporary):
            os.remove(temporary)
        raise RunError(f"--output: can't write {path}: {error.strerror}") from error


def make_folder(path: str) -> None:
    """The folder in which the file `path` will be, before the work that it is for.

    Raises:
        RunError: it can't be made, or not be written.
    """
    folder = os.path.dirname(path) or "."
    try:
        os.makedirs(folder, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise RunError(
            f"--output: expected a path in a writable folder, got {path} "
            f"({error.strerror})"
        ) from error
