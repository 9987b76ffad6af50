"""SHA-256 of every file of a checkpoint, since Orbax's payloads carry no checksum.

`STEP.sha256` is next to the folder `STEP`, in the format that `sha256sum --check`
reads. It is written once the folder is complete, so if it is missing, either the save
was cut short or the file was lost; in both cases the folder is not to be trusted.
"""

import hashlib
import os

_SUFFIX = ".sha256"
_DIGITS = hashlib.sha256().digest_size * 2
# The most that is read of an untrusted manifest; ours list some 30 files.
_MOST_BYTES = 2**22


class DamagedCheckpointError(ValueError):
    """A file of a checkpoint is missing, added, or not what was written."""


class UnfinishedCheckpointError(DamagedCheckpointError):
    """A checkpoint without its manifest, which is written last."""


def manifest_path(folder: str, step: int) -> str:
    return os.path.join(folder, f"{step}{_SUFFIX}")


def write_manifest(folder: str, step: int) -> None:
    """Writes the manifest of `step`, atomically."""
    digests = {name: _digest(folder, name) for name in _files(folder, step)}
    path = manifest_path(folder, step)
    temporary = f"{path}.tmp"
    with open(temporary, "w", encoding="utf-8") as file:
        file.writelines(f"{digest}  {name}\n" for name, digest in digests.items())
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def remove_stale_manifests(folder: str) -> None:
    """Removes the manifests of steps whose folders are gone."""
    for name in os.listdir(folder):
        step, suffix = os.path.splitext(name)
        is_manifest = suffix == _SUFFIX and step.isdecimal()
        if is_manifest and not os.path.isdir(os.path.join(folder, step)):
            os.remove(os.path.join(folder, name))


def verify(folder: str, step: int) -> None:
    """Compares every file of `step` with its record.

    Raises:
        DamagedCheckpointError: naming the first file that differs.
    """
    recorded = _recorded(folder, step)
    found = set(_files(folder, step))
    for name in sorted(found | recorded.keys()):
        if name not in found:
            raise DamagedCheckpointError(f"step {step}: {name} is missing")
        if name not in recorded:
            raise DamagedCheckpointError(
                f"step {step}: {name} is not listed in {step}{_SUFFIX}"
            )
        if _digest(folder, name) != recorded[name]:
            raise DamagedCheckpointError(
                f"step {step}: {name} is damaged (its SHA-256 is not that in "
                f"{step}{_SUFFIX})"
            )


def _recorded(folder: str, step: int) -> dict[str, str]:
    path = manifest_path(folder, step)
    name = os.path.basename(path)
    try:
        with open(path, "rb") as file:
            content = file.read(_MOST_BYTES + 1)
    except FileNotFoundError as error:
        raise UnfinishedCheckpointError(
            f"step {step}: {name} is missing (the save was cut short, or the file was "
            f"removed)"
        ) from error
    recorded = {}
    try:
        if len(content) > _MOST_BYTES or not content.endswith(b"\n"):
            raise ValueError
        for line in content.decode().splitlines():
            digest, separator, file_name = line.partition("  ")
            if not separator or len(digest) != _DIGITS:
                raise ValueError
            recorded[file_name] = digest
    except ValueError as error:
        raise DamagedCheckpointError(f"step {step}: {name} is damaged") from error
    return recorded


def _files(folder: str, step: int) -> list[str]:
    """Paths relative to `folder`, with "/"; raises for links and other non-files."""
    names = []
    top = os.path.join(folder, str(step))
    for parent, folders, files in os.walk(top, onerror=_raise_unless_gone):
        for name in files + [n for n in folders if os.path.islink(f"{parent}/{n}")]:
            path = os.path.join(parent, name)
            if os.path.islink(path) or not os.path.isfile(path):
                raise DamagedCheckpointError(
                    f"step {step}: {path} is not a regular file"
                )
            names.append(os.path.relpath(path, folder).replace(os.sep, "/"))
    return sorted(names)


def _raise_unless_gone(error: OSError) -> None:
    """What can't be read is not missing; `os.walk` would pass over it."""
    if not isinstance(error, FileNotFoundError):
        raise error


def _digest(folder: str, name: str) -> str:
    with open(os.path.join(folder, name), "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
