"""Libraries that nobody else may have written: their content decides what runs here."""

import contextlib
import ctypes
import hashlib
import os
import pathlib
import stat
from collections.abc import Iterator

# A digest of the content follows it: a library loader reads only what the header says.
_DIGEST_SIZE = hashlib.sha256().digest_size
_DESCRIPTORS = pathlib.Path("/proc/self/fd")


def seal(library: pathlib.Path) -> None:
    """Makes a library that was compiled just now one that `load` takes."""
    content = library.read_bytes()
    library.write_bytes(content + _digest(content))
    # An administrator may have built it for all users.
    library.chmod(0o755)


def load(library: pathlib.Path) -> ctypes.CDLL:
    """Loads a sealed library.

    Raises:
        OSError: it was altered, others could alter it, or it can't be loaded.
    """
    with _held(library.parent) as folder:
        held = folder / library.name
        try:
            require_only_owner_writes(folder)
            require_only_owner_writes(held)
            content = held.read_bytes()
            # Before it is loaded: loading a truncated file would end the process.
            if _digest(content[:-_DIGEST_SIZE]) != content[-_DIGEST_SIZE:]:
                raise OSError(f"{held} is damaged")
            return ctypes.CDLL(str(held))
        except FileNotFoundError:
            raise
        except OSError as error:
            named = str(error).replace(str(folder), str(library.parent))
            raise OSError(named) from error


def require_only_owner_writes(place: pathlib.Path) -> None:
    """Whoever writes a library or its folder decides what runs here.

    Raises:
        OSError: that is not the user, or root, alone.
    """
    status = place.stat()
    if hasattr(os, "geteuid") and status.st_uid not in (0, os.geteuid()):
        raise OSError(f"{place} belongs to another user")
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise OSError(f"other users can write to {place}")


@contextlib.contextmanager
def _held(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """A path to `folder` that leads to the same one even if others replace it.

    They may own a folder above it. Where the system has no such paths, `folder` itself.
    """
    if not (hasattr(os, "O_PATH") and _DESCRIPTORS.is_dir()):
        yield folder
        return
    # Which takes no permission to list what the folder holds.
    descriptor = os.open(folder, os.O_PATH | os.O_DIRECTORY)
    try:
        yield _DESCRIPTORS / str(descriptor)
    finally:
        os.close(descriptor)


def _digest(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()
