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
        RunError: the file can't be read.
    """
    path = os.path.join(workdir, FILE_NAME)
    sound: list[dict[str, Any]] = []
    try:
        with open(path, "rb") as file:
            for line in file:
                row = _row(line)
                if row is None:
                    break  # Cut short by a crash; nothing sound follows it.
                sound.append(row)
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as error:
        raise RunError(f"can't read {path}: {error.strerror}") from error
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
    """

    def __init__(self, workdir: str, restored_epoch: int):
        self._path = os.path.join(workdir, FILE_NAME)
        with naming("--workdir"):
            kept = [row for row in rows(workdir) if row["epoch"] <= restored_epoch]
            lines = "".join(json.dumps(row) + "\n" for row in kept)
            write_whole({self._path: lines.encode()})

    def append(self, row: dict[str, Any]) -> None:
        try:
            with open(self._path, "a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
        except OSError as error:
            raise RunError(f"--workdir: can't write {self._path}: {error}") from error
