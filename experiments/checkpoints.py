"""Writing and restoring the checkpoints of a run; the format is flax_lstm's."""

import dataclasses
import io
import os
import sys
from typing import Any

import jax
import orbax.checkpoint as ocp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from experiments import metrics, processes, streams
from experiments.checkpoint_folders import is_checkpoint, require_outside
from experiments.data.choose import Choice
from experiments.errors import RunError, naming, require_no_pattern
from experiments.hyper_parameters import HyperParameters
from experiments.train_state import KEY_IMPLEMENTATION, TrainState
from experiments.training import EpochProgress
from flax_lstm.checkpoint import (
    CONFIG,
    FORMAT_VERSION,
    PARAMS,
    TRAINING,
    DamagedCheckpointError,
    UnfinishedCheckpointError,
    checkpoint_steps,
    classifier_options,
    orbax_path,
    read_config,
    remove_stale_manifests,
    write_manifest,
)

_KEPT = 3
_ASIDE = "damaged-"
_KEYS = ("shuffle_key", "dropout_key", "warp_key")


@dataclasses.dataclass(frozen=True)
class Recorded:
    """What a checkpoint says about its run; `epoch` is the last complete one."""

    dataset: Choice
    hyper_parameters: dict[str, Any]
    epoch: int
    step: int
    progress: EpochProgress | None

    @property
    def position(self) -> str:
        into = f" and {self.progress.steps} steps" if self.progress else ""
        return f"epoch {self.epoch}{into}, step {self.step}"


@dataclasses.dataclass(frozen=True)
class Found:
    """The newest sound checkpoint of a workdir, and what is wrong with newer ones."""

    recorded: Recorded | None = None
    damaged: dict[int, str] = dataclasses.field(default_factory=dict)


def require_storable(workdir: str) -> None:
    """To be called before anything is trained.

    Raises:
        RunError: Orbax could not write in `workdir`, or not read what it wrote there;
            or it is part of a checkpoint, which anything written there would damage.
    """
    try:
        path = orbax_path(workdir)
    except ValueError as error:
        raise RunError(f"--workdir: {str(error).removeprefix('path: ')}") from error
    require_no_pattern("--workdir", path, "Orbax")
    with naming("--workdir"):
        require_outside(workdir)


def find(workdir: str) -> Found:
    """Looks for the newest checkpoint whose files are all as they were written.

    Raises:
        RunError: there are some, but none is intact; or one can't be read; or there is
            none although the run had several epochs; or something else has the name of
            a checkpoint.
    """
    if not os.path.isdir(workdir):
        return Found()
    damaged: dict[int, str] = {}
    only_unfinished = True
    try:
        steps = checkpoint_steps(workdir)
        _require_own(workdir, steps)
        for step in reversed(steps):
            try:
                return Found(_recorded(read_config(workdir, step)), damaged)
            except DamagedCheckpointError as error:
                damaged[step] = str(error)
                only_unfinished &= isinstance(error, UnfinishedCheckpointError)
    except RunError:
        raise
    except Exception as error:  # Orbax raises many kinds for what is no checkpoint.
        raise RunError(f"--workdir: {workdir} can't be read: {error}") from error
    # If the very first save was cut short, there is nothing to continue from, and
    # nothing was lost. The metrics of its epoch are written before it.
    with naming("--workdir"):
        epochs = len(metrics.rows(workdir))
    if only_unfinished and len(damaged) <= 1 and epochs <= 1:
        return Found(None, damaged)
    problems = "; ".join(damaged.values())
    if not problems:
        problems = f"there is none, but {epochs} epochs in {metrics.FILE_NAME}"
    raise RunError(
        f"--workdir: no checkpoint in {workdir} is sound ({problems}); give another "
        f"--workdir to begin anew"
    )


def _require_own(workdir: str, steps: list[int]) -> None:
    """Orbax would remove somebody's folder `7` as the checkpoint of an old step."""
    for step in steps:
        if not is_checkpoint(workdir, step):
            folder = os.path.join(workdir, str(step))
            raise RunError(
                f"--workdir: expected no folders but checkpoints with numbers as "
                f"names, got {folder}; rename it, or give another --workdir"
            )


def set_aside(workdir: str, steps: dict[int, str]) -> None:
    """Renames the folders of these steps, so that the run can write them again."""
    for step in steps:
        source = os.path.join(workdir, str(step))
        target = os.path.join(workdir, f"{_ASIDE}{step}")
        number = 1
        while os.path.exists(target):
            number += 1
            target = os.path.join(workdir, f"{_ASIDE}{step}-{number}")
        try:
            os.rename(source, target)
            remove_stale_manifests(workdir)
        except OSError as error:
            raise RunError(f"--workdir: can't rename {source}: {error}") from error


def _recorded(config: dict[str, Any]) -> Recorded:
    progress = config["progress"]
    return Recorded(
        dataset=Choice(**config["dataset"]),
        hyper_parameters=config["hyper_parameters"],
        epoch=config["epoch"],
        step=config["step"],
        progress=progress and EpochProgress.from_json(progress),
    )


class Checkpoints:
    """The latest few checkpoints of one run, in its workdir."""

    def __init__(self, workdir: str, dataset: Choice, parameters: HyperParameters):
        try:
            self._manager = ocp.CheckpointManager(
                orbax_path(workdir),
                options=ocp.CheckpointManagerOptions(
                    preservation_policy=ocp.checkpoint_managers.LatestN(_KEPT),
                    cleanup_tmp_directories=True,
                ),
            )
        except OSError as error:
            raise RunError(
                f"--workdir: expected a writable folder, got {workdir} ({error})"
            ) from error
        # Held open, so that no folder made after it gets its number.
        self._folder = os.open(workdir, os.O_RDONLY)
        self._failed = False
        self._workdir = workdir
        self._dataset = dataset
        self._parameters = parameters

    def save(
        self,
        state: TrainState,
        model,
        epoch: int,
        progress: EpochProgress | None = None,
    ) -> None:
        """Saves `state`; returns when it is on the disk.

        Args:
            state: on any devices.
            model: the one whose options are recorded.
            epoch: the last complete epoch.
            progress: how far the next epoch has come, None at its start.
        """
        config = {
            "format_version": FORMAT_VERSION,
            "model": classifier_options(model),
            "dataset": dataclasses.asdict(self._dataset),
            "hyper_parameters": dataclasses.asdict(self._parameters),
            "epoch": epoch,
            "progress": progress and progress.to_json(),
        }
        items = {
            PARAMS: ocp.args.StandardSave(state.tested_params),
            TRAINING: ocp.args.StandardSave(_training_part(state)),
            CONFIG: ocp.args.JsonSave(config),
        }
        step = int(state.step)
        # For every array that can't be written TensorStore prints a traceback, from
        # threads that outlive the save: after a failure stderr stays replaced until the
        # process ends. The one error below says it all.
        stderr, sys.stderr = sys.stderr, io.StringIO()
        try:
            self._require_same_folder()
            self._manager.save(step, args=ocp.args.Composite(**items))
            self._manager.wait_until_finished()
            self._require_same_folder()
            if processes.is_first():
                write_manifest(self._workdir, step)
                remove_stale_manifests(self._workdir)
        except Exception as error:  # Orbax raises many kinds for a full disk.
            self._failed = True
            processes.require_all_there(error)
            raise RunError(
                f"--workdir: saving step {step} in {self._workdir} failed: {error}"
            ) from error
        said = sys.stderr.getvalue()
        sys.stderr = stderr
        if said:
            streams.note(said.removesuffix("\n"))

    def restore(self, step: int, fresh: TrainState, mesh: Mesh) -> TrainState:
        """`fresh` with everything replaced by what was saved at `step`, on `mesh`."""
        everywhere = NamedSharding(mesh, PartitionSpec())

        def target(tree):
            return ocp.args.StandardRestore(
                jax.tree.map(
                    lambda leaf: jax.ShapeDtypeStruct(
                        leaf.shape, leaf.dtype, sharding=everywhere
                    ),
                    tree,
                )
            )

        try:
            restored = self._manager.restore(
                step,
                args=ocp.args.Composite(
                    **{
                        PARAMS: target(fresh.tested_params),
                        TRAINING: target(_training_part(fresh)),
                    }
                ),
            )
        except Exception as error:  # Orbax raises many kinds for other contents.
            raise RunError(
                f"--workdir: the checkpoint of step {step} can't be restored: {error}"
            ) from error
        training = restored[TRAINING]
        averaged = fresh.mean_params is not None
        return fresh.replace(
            params=training["params"] if averaged else restored[PARAMS],
            mean_params=restored[PARAMS] if averaged else None,
            opt_state=training["opt_state"],
            step=training["step"],
            **{
                key: jax.random.wrap_key_data(training[key], impl=KEY_IMPLEMENTATION)
                for key in _KEYS
            },
        )

    def _require_same_folder(self) -> None:
        """Orbax would recreate a folder that was removed, without its contents."""
        if not os.path.samestat(os.fstat(self._folder), os.stat(self._workdir)):
            raise FileNotFoundError("the folder was replaced during the run")

    def close(self) -> None:
        os.close(self._folder)
        if not self._failed:  # After a failure Orbax would wait for ever.
            self._manager.close()


def _training_part(state: TrainState) -> dict[str, Any]:
    # Orbax stores arrays, which typed keys are not: their raw words are saved.
    # The item PARAMS holds what is tested, which is not what is trained where the
    # parameters are averaged.
    averaged = state.mean_params is not None
    return {
        **({"params": state.params} if averaged else {}),
        "opt_state": state.opt_state,
        "step": jax.numpy.asarray(state.step),
        **{key: jax.random.key_data(getattr(state, key)) for key in _KEYS},
    }
