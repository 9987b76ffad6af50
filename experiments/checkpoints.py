"""Writing and restoring the checkpoints of a run; the form is flax_lstm's."""

import dataclasses
import os
from typing import Any

import jax
import orbax.checkpoint as ocp

from experiments.data.choose import Choice
from experiments.errors import RunError
from experiments.hyper_parameters import HyperParameters
from experiments.training import TrainState
from flax_lstm.checkpoint import (
    CONFIG,
    FORMAT_VERSION,
    PARAMS,
    TRAINING,
    classifier_options,
    read_config,
)

_KEPT = 3


@dataclasses.dataclass(frozen=True)
class Recorded:
    """What the newest checkpoint of a workdir says about its run."""

    dataset: Choice
    hyper_parameters: dict[str, Any]
    epoch: int
    step: int


def read_recorded(workdir: str) -> Recorded | None:
    """The newest checkpoint's record, or None where there is no checkpoint.

    Raises:
        RunError: there is one, but it can't be read.
    """
    if not os.path.isdir(workdir):
        return None
    try:
        config = read_config(workdir)
        return Recorded(
            dataset=Choice(**config["dataset"]),
            hyper_parameters=config["hyper_parameters"],
            epoch=config["epoch"],
            step=config["step"],
        )
    except FileNotFoundError:
        return None
    except Exception as error:  # Orbax raises many kinds for a damaged file.
        raise RunError(f"--workdir: {workdir} can't be read: {error}") from error


class Checkpoints:
    """The latest few checkpoints of one run, in its workdir."""

    def __init__(self, workdir: str, dataset: Choice, parameters: HyperParameters):
        try:
            os.makedirs(workdir, exist_ok=True)
            self._manager = ocp.CheckpointManager(
                os.path.abspath(workdir),
                options=ocp.CheckpointManagerOptions(
                    preservation_policy=ocp.checkpoint_managers.LatestN(_KEPT),
                    cleanup_tmp_directories=True,
                ),
            )
        except OSError as error:
            raise RunError(
                f"--workdir: expected a writable folder, got {workdir} ({error})"
            ) from error
        self._dataset = dataset
        self._parameters = parameters

    def save(self, state: TrainState, model, epoch: int) -> None:
        """Saves `state` after `epoch`; returns when it is on the disk."""
        config = {
            "format_version": FORMAT_VERSION,
            "model": classifier_options(model),
            "dataset": dataclasses.asdict(self._dataset),
            "hyper_parameters": dataclasses.asdict(self._parameters),
            "epoch": epoch,
        }
        try:
            self._manager.save(
                int(state.step),
                args=ocp.args.Composite(
                    **{
                        PARAMS: ocp.args.StandardSave(state.params),
                        TRAINING: ocp.args.StandardSave(_training_part(state)),
                        CONFIG: ocp.args.JsonSave(config),
                    }
                ),
            )
            self._manager.wait_until_finished()
        except (OSError, ValueError) as error:
            raise RunError(f"--workdir: saving a checkpoint failed: {error}") from error

    def restore(self, step: int, fresh: TrainState) -> TrainState:
        """`fresh` with everything replaced by what was saved at `step`."""
        try:
            restored = self._manager.restore(
                step,
                args=ocp.args.Composite(
                    **{
                        PARAMS: ocp.args.StandardRestore(_abstract(fresh.params)),
                        TRAINING: ocp.args.StandardRestore(
                            _abstract(_training_part(fresh))
                        ),
                    }
                ),
            )
        except Exception as error:  # Orbax raises many kinds for a damaged file.
            raise RunError(
                f"--workdir: the checkpoint of step {step} can't be restored: {error}"
            ) from error
        training = restored[TRAINING]
        return fresh.replace(
            params=restored[PARAMS],
            opt_state=training["opt_state"],
            step=training["step"],
            shuffle_key=jax.random.wrap_key_data(training["shuffle_key"]),
            dropout_key=jax.random.wrap_key_data(training["dropout_key"]),
        )

    def close(self) -> None:
        self._manager.close()


def _training_part(state: TrainState) -> dict[str, Any]:
    # Orbax stores arrays, and typed keys are none: their raw words are saved.
    return {
        "opt_state": state.opt_state,
        "step": jax.numpy.asarray(state.step),
        "shuffle_key": jax.random.key_data(state.shuffle_key),
        "dropout_key": jax.random.key_data(state.dropout_key),
    }


def _abstract(tree: Any) -> Any:
    """Target on this process's first device, whichever devices wrote the file."""
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device), tree
    )
