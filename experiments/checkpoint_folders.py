"""Telling a run's checkpoints from other folders."""

import os
import pathlib

from experiments.errors import RunError
from flax_lstm.checkpoint import CONFIG, PARAMS, TRAINING, manifest_path

# What a folder that Orbax finished has; one is enough, where others were damaged.
_PARTS = ("_CHECKPOINT_METADATA", CONFIG, PARAMS, TRAINING)


def is_checkpoint(workdir: str, step: int) -> bool:
    """Whether it is, or was, one of a run in `workdir`, and not just named like one."""
    parts = (os.path.join(workdir, str(step), part) for part in _PARTS)
    return any(map(os.path.exists, (*parts, manifest_path(workdir, step))))


def require_outside(path: str) -> None:
    """What is written in a checkpoint, or on its manifest, would damage it.

    Raises:
        RunError: `path` is part of a checkpoint.
    """
    whole = pathlib.Path(path).resolve()
    for part in (whole, *whole.parents):
        step = part.name.removesuffix(".sha256")
        if step.isdecimal() and is_checkpoint(str(part.parent), int(step)):
            raise RunError(
                f"expected a path outside of checkpoints, got {path}, which is of that "
                f"of step {step} in {part.parent}"
            )
