"""`metrics.jsonl` in the workdir: one JSON object for each finished epoch."""

import json
import os
from typing import Any

from experiments.errors import RunError

FILE_NAME = "metrics.jsonl"


class MetricsFile:
    """Appends rows; on opening it forgets those beyond the restored epoch.

    A row is written before its epoch's checkpoint, so a run that was stopped in
    between has a row too many, and never one too few.
    """

    def __init__(self, workdir: str, restored_epoch: int):
        self._path = os.path.join(workdir, FILE_NAME)
        rows = [row for row in self._rows() if row["epoch"] <= restored_epoch]
        self._replace(rows)

    def append(self, row: dict[str, Any]) -> None:
        try:
            with open(self._path, "a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
        except OSError as error:
            raise RunError(f"--workdir: can't write {self._path}: {error}") from error

    def _rows(self):
        if not os.path.exists(self._path):
            return
        with open(self._path, encoding="utf-8") as file:
            for line in file:
                try:
                    row = json.loads(line)
                    row["epoch"]
                except (ValueError, KeyError, TypeError):
                    return  # A line cut short by a crash; nothing sound follows it.
                yield row

    def _replace(self, rows) -> None:
        temporary = self._path + ".tmp"
        try:
            with open(temporary, "w", encoding="utf-8") as file:
                file.writelines(json.dumps(row) + "\n" for row in rows)
            os.replace(temporary, self._path)
        except OSError as error:
            raise RunError(f"--workdir: can't write {self._path}: {error}") from error
