"""Writing files whole or not at all."""

import contextlib
import os
import tempfile
import uuid
from collections.abc import Iterator, Mapping

from experiments.checkpoint_folders import require_outside
from experiments.ending import unfinished
from experiments.errors import RunError


@contextlib.contextmanager
def replacing(*paths: str) -> Iterator[tuple[str, ...]]:
    """Temporary files beside `paths`, which they replace once all of them are written.

    Until then, and after an error, what was there is left alone. Where a path is a
    link, it stays one, and its target is replaced. Folders that are missing are made.

    Raises:
        RunError: one can't be written, or `require_files` refuses it.
    """
    require_files(*paths)
    # Nobody else's, not even those of another process that writes the same.
    targets = [os.path.realpath(path) for path in paths]
    temporaries = tuple(
        os.path.join(os.path.dirname(target), f".{uuid.uuid4().hex}.tmp")
        for target in targets
    )
    unfinished.update(temporaries)
    try:
        for temporary in temporaries:
            with contextlib.suppress(FileExistsError):  # If a file, writing says so.
                os.makedirs(os.path.dirname(temporary), exist_ok=True)
        yield temporaries
        for temporary in temporaries:
            with open(temporary, "rb") as file:
                os.fsync(file.fileno())
        for temporary, target in zip(temporaries, targets, strict=True):
            os.replace(temporary, target)
    except OSError as error:
        raise RunError(
            f"can't write {' and '.join(paths)}: {error.strerror or error}"
        ) from error
    finally:
        for temporary in temporaries:
            with contextlib.suppress(OSError):
                os.remove(temporary)
        unfinished.difference_update(temporaries)


def write_whole(contents: Mapping[str, bytes]) -> None:
    """Writes each content to its path, or none of them.

    Raises:
        RunError: one can't be written; what was there is left alone.
    """
    with replacing(*contents) as temporaries:
        for temporary, content in zip(temporaries, contents.values(), strict=True):
            with open(temporary, "wb") as file:
                file.write(content)


def require_writable(*paths: str) -> None:
    """Makes the folders of files that a command will write after minutes of work.

    Raises:
        RunError: a folder can't be made or written to, or `require_files` refuses a
            path.
    """
    require_files(*paths)
    for path in paths:
        folder = os.path.dirname(os.path.realpath(path))
        try:
            os.makedirs(folder, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            raise RunError(
                f"expected a path in a writable folder, got {path} ({error.strerror})"
            ) from error


def require_files(*paths: str) -> None:
    """Checks paths that are to be written.

    Raises:
        RunError: one exists but is no file, can't be a file's path, or is part of a
            checkpoint.
    """
    for path in paths:
        # A device would be replaced by a file.
        is_other = os.path.lexists(path) and not os.path.isfile(path)
        if is_other or not os.path.basename(path):
            raise RunError(f"expected the path of a file, old or new, got {path}")
        require_outside(path)
