"""Writing a file whole or not at all."""

import os

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
    """The folder in which the file `path` will be.

    Raises:
        RunError: it can't be made.
    """
    try:
        os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    except OSError as error:
        raise RunError(
            f"--output: can't make the folder of {path}: {error.strerror}"
        ) from error
