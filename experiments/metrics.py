"""`metrics.jsonl` in the workdir: one JSON object for each finished epoch."""

import json
import os
from typing import Any

from experiments.errors import RunError, naming
from experiments.whole_file import write_whole

FILE_NAME = "metrics.jsonl"
_NUMBERS = (
    "epoch",
    *(f"{s}_{n}" for s in ("train", "test") for n in ("loss", "accuracy", "examples")),
)


def rows(workdir: str) -> list[dict[str, Any]]:
    """One row for each finished epoch, the first one first; [] if there are none.

    Raises:
        RunError: the file can't be read, or is damaged before its last line.
    """
    path = os.path.join(workdir, FILE_NAME)
    try:
        with open(path, "rb") as file:
            found = [_row(line) for line in file]
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise RunError(f"can't read {path}: {error.strerror}") from error
    sound = [row for row in found if row is not None]
    # A crash cuts the last line short; nothing sound follows it.
    if found[: len(sound)] != sound:
        number = found.index(None) + 1
        raise RunError(
            f"expected a row of metrics in line {number} of {path}, as in those after "
            f"it; mend or remove that line"
        )
    return sound


def _row(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
        is_whole = all(isinstance(row[name], int | float) for name in _NUMBERS)
    except (ValueError, KeyError, TypeError):
        return None
    return row if is_whole else None


class MetricsFile:
    """Appends rows; opening it drops those after the restored epoch.

    A row is written before its epoch's checkpoint, so a run that was stopped in
    between has a row too many, and never one too few.

    Attributes:
        missing: restored epochs that have no row (somebody removed it).
    """

    def __init__(self, workdir: str, restored_epoch: int):
        self._path = os.path.join(workdir, FILE_NAME)
        with naming("--workdir"):
            kept = [row for row in rows(workdir) if row["epoch"] <= restored_epoch]
            lines = "".join(json.dumps(row) + "\n" for row in kept)
            write_whole({self._path: lines.encode()})
        found = {row["epoch"] for row in kept}
        self.missing = [n for n in range(1, restored_epoch + 1) if n not in found]

    def append(self, row: dict[str, Any]) -> None:
        try:
            with open(self._path, "a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
                file.flush()
                os.fsync(file.fileno())  # Before its checkpoint, as that is, too.
        except OSError as error:
            raise RunError(f"--workdir: can't write {self._path}: {error}") from error
