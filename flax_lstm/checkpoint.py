"""The format of a classifier's checkpoints, and loading one.

A checkpoint folder is what `orbax.checkpoint.CheckpointManager` writes, one folder per
step, with these items:

- `params`: the model's parameters.
- `training`: what is needed only to continue training (optimizer state, PRNG keys).
- `config`: JSON with `format_version`, the `model`'s `cell` (`"lstm"`, `"gru"` or
  `"rnn"`) and options, and whatever else the writer records (the dataset, the run's
  hyper-parameters, epoch and step).

Next to each step's folder is `STEP.sha256`, which `sha256sum --check` reads, too; a
checkpoint whose files do not match it is not loaded.

Orbax is imported when a function here is called, not before.
"""

import contextlib
import dataclasses
import logging
import os
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flax_lstm import _validation as check
from flax_lstm._classifier import CLASSIFIERS, SequenceClassifier
from flax_lstm._manifest import (
    DamagedCheckpointError as DamagedCheckpointError,
    UnfinishedCheckpointError as UnfinishedCheckpointError,
    manifest_path as manifest_path,
    remove_stale_manifests as remove_stale_manifests,
    verify as verify,
    write_manifest as write_manifest,
)

FORMAT_VERSION = 3
PARAMS, TRAINING, CONFIG = "params", "training", "config"

_DTYPE_OPTIONS = ("dtype", "param_dtype")
# How a model is computed is the choice of the program that restores it.
_UNRECORDED_OPTIONS = ("implementation", "remat", "parent", "name")


class NoCheckpointError(FileNotFoundError):
    """There is no such folder, no checkpoint in it, or none of the requested step.

    Attributes:
        argument: `'path'` or `'step'`, which of the two is at fault.
        reason: what was expected and what was found.
    """

    def __init__(self, argument: str, reason: str):
        super().__init__(f"{argument}: {reason}")
        self.argument, self.reason = argument, reason


def classifier_options(model: SequenceClassifier) -> dict[str, Any]:
    """The `cell` and constructor options of `model` as JSON values, dtypes by name.

    How it is computed (`implementation`, `remat`) is left out.

    Args:
        model: an `LSTMClassifier`, `GRUClassifier` or `RNNClassifier`.

    Returns:
        What `classifier_from_options` takes, and `json.dumps`, too.

    Example:
        >>> from flax_lstm import GRUClassifier
        >>> from flax_lstm.checkpoint import classifier_options
        >>> model = GRUClassifier(num_classes=10, input_size=28, hidden_size=32)
        >>> options = classifier_options(model)
        >>> options['cell'], options['hidden_size'], options['param_dtype']
        ('gru', 32, 'float32')
    """
    options = {"cell": model.cell} | {
        field.name: getattr(model, field.name)
        for field in dataclasses.fields(model)
        if field.name not in _UNRECORDED_OPTIONS
    }
    for name in _DTYPE_OPTIONS:
        if options[name] is not None:
            options[name] = jnp.dtype(options[name]).name
    return {name: _as_json(value) for name, value in options.items()}


def _as_json(value: Any) -> Any:
    """NumPy's scalars and fractions are accepted as options, but not by JSON."""
    if isinstance(value, np.generic):
        return value.item()
    return float(value) if isinstance(value, Fraction) else value


def classifier_from_options(options: dict[str, Any]) -> SequenceClassifier:
    """The inverse of `classifier_options`.

    Args:
        options: `cell` (`"lstm"`, `"gru"` or `"rnn"`) and options of that classifier's
            constructor; the others have their defaults.

    Returns:
        An `LSTMClassifier`, `GRUClassifier` or `RNNClassifier`.

    Raises:
        ValueError, TypeError: an unknown cell or option, or a value out of its range.

    Example:
        >>> from flax_lstm.checkpoint import classifier_from_options
        >>> options = {'num_classes': 10, 'input_size': 28, 'hidden_size': 32}
        >>> type(classifier_from_options({'cell': 'gru', **options})).__name__
        'GRUClassifier'
    """
    options = {k: v for k, v in options.items() if k not in _UNRECORDED_OPTIONS}
    cell = options.pop("cell", None)
    check.require_one_of("cell", cell, CLASSIFIERS)
    for name in _DTYPE_OPTIONS:
        if options.get(name) is not None:
            options[name] = jnp.dtype(options[name])
    return CLASSIFIERS[cell](**options)


def abstract_params(model: SequenceClassifier) -> Any:
    """Shapes, dtypes and shardings (on one local device) of `model`'s parameters.

    Without such a target, Orbax insists on the devices that wrote the checkpoint.

    Args:
        model: an `LSTMClassifier`, `GRUClassifier` or `RNNClassifier`.

    Returns:
        The tree of its `'params'`, with a `jax.ShapeDtypeStruct` for every array.

    Example:
        >>> from flax_lstm import RNNClassifier
        >>> from flax_lstm.checkpoint import abstract_params
        >>> model = RNNClassifier(num_classes=10, input_size=28, hidden_size=32)
        >>> abstract_params(model)['head']['kernel'].shape
        (32, 10)
    """
    sequence = jax.ShapeDtypeStruct((1, 1, model.input_size), model.param_dtype)
    variables = jax.eval_shape(model.init, jax.random.key(0), sequence)
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device),
        variables["params"],
    )


def orbax_path(path: str | os.PathLike[str]) -> str:
    """`path` as an absolute one that Orbax and TensorStore understand.

    Args:
        path: of a folder, which need not exist.

    Returns:
        The same folder, without a slash at the end.

    Raises:
        ValueError: there is none. TensorStore takes a backslash for a slash, and would
            read and write another folder; other than UTF-8 it refuses. An address such
            as `gs://bucket/run` is no folder of this machine.

    Example:
        >>> from flax_lstm.checkpoint import orbax_path
        >>> orbax_path('//runs/mnist/')
        '/runs/mnist'
    """
    absolute = os.path.abspath(path)
    # Orbax takes a folder `gs:` for the beginning of an address, too.
    if "://" in os.fspath(path) or "gs:" in absolute.split(os.sep):
        raise ValueError(f"path: expected a folder of this machine, got {path}")
    if absolute.startswith("//"):  # POSIX keeps two slashes; TensorStore refuses them.
        absolute = absolute[1:]
    try:
        absolute.encode()
    except UnicodeEncodeError:
        shown = ascii(os.fspath(path))
        raise ValueError(f"path: expected one in UTF-8, got {shown}") from None
    if os.sep == "/" and "\\" in absolute:
        raise ValueError(
            f"path: expected one without a backslash, which Orbax takes for a slash, "
            f"got {absolute}"
        )
    return absolute


def checkpoint_steps(path: str | os.PathLike[str]) -> list[int]:
    """The steps with a checkpoint in `path`, damaged or not, in ascending order.

    Args:
        path: the folder of the checkpoints.

    Returns:
        A list, empty if the folder holds no checkpoint.

    Raises:
        NoCheckpointError: no such folder.
        TypeError, ValueError: `path` is of the wrong type, or none that Orbax takes.

    Example:
        >>> import tempfile
        >>> from flax_lstm.checkpoint import checkpoint_steps
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     checkpoint_steps(folder)
        []
    """
    with _reader(path) as manager:
        return sorted(manager.all_steps())


def read_config(
    path: str | os.PathLike[str], step: int | None = None
) -> dict[str, Any]:
    """The `config` item of a checkpoint, with the `step` it belongs to.

    Every file of the checkpoint is first compared with its checksum.

    Args:
        path: the folder of the checkpoints (an experiment's workdir).
        step: which one; None is the newest.

    Returns:
        A dict of JSON values: `format_version`, `model` (as `classifier_options` gives
        it), `step`, and what else the writer recorded. The experiment records
        `dataset`, `hyper_parameters`, `epoch` (the last complete one) and `progress`
        (in the next epoch; None at its start).

    Raises:
        NoCheckpointError: there is no such folder, no checkpoint in it, or none of that
            step. It is a FileNotFoundError.
        DamagedCheckpointError: a file of the checkpoint is not what was written.
        ValueError: the checkpoint is of another format version, or not a classifier's.
        TypeError: `path` or `step` is of the wrong type.

    Example:
        >>> from flax_lstm.checkpoint import read_config
        >>> read_config('no/such/folder')  # doctest: +ELLIPSIS
        Traceback (most recent call last):
            ...
        flax_lstm.checkpoint.NoCheckpointError: path: expected a folder of ...
    """
    import orbax.checkpoint as ocp

    if step is not None:
        check.require_natural_int("step", step)
    steps = checkpoint_steps(path)
    if not steps:
        folder = os.path.abspath(path)
        hint = ""
        if os.path.isdir(os.path.join(folder, CONFIG)):
            parent, name = os.path.split(folder)
            hint = f"; it is itself the checkpoint of step {name} in {parent}"
        raise NoCheckpointError(
            "path", f"expected a checkpoint in {path}, got none{hint}"
        )
    if step is not None and step not in steps:
        raise NoCheckpointError(
            "step", f"expected one of {steps} in {path}, got {step}"
        )
    step = steps[-1] if step is None else step
    verify(os.fspath(path), step)
    with _reader(path) as manager, _of_a_classifier(path, step):
        restored = manager.restore(
            step, args=ocp.args.Composite(config=ocp.args.JsonRestore())
        )
    config = dict(restored[CONFIG])
    if config.get("format_version") != FORMAT_VERSION:
        raise ValueError(
            f"path: expected a checkpoint of format version {FORMAT_VERSION} in "
            f"{path}, got {config.get('format_version')!r}"
        )
    return {**config, "step": step}


def load_classifier(
    path: str | os.PathLike[str], step: int | None = None
) -> tuple[SequenceClassifier, dict[str, Any]]:
    """Restores a trained classifier, ready for `model.apply(variables, x)`.

    The checkpoint itself records which model it holds. It is restored onto this
    process's first device, whatever number and kind of devices wrote it.

    Args:
        path: the folder of the checkpoints, which is the `--workdir` of
            `python -m experiments.mnist`. (For weights of a program of your own use
            Orbax; see the guide.)
        step: which checkpoint; None is the newest.

    Returns:
        `(model, variables)`, an `LSTMClassifier`, `GRUClassifier` or `RNNClassifier`
        and its parameters under `variables['params']`.

    Raises:
        NoCheckpointError: there is no such folder, no checkpoint in it, or none of that
            step. It is a FileNotFoundError.
        DamagedCheckpointError: a file of the checkpoint is not what was written; an
            older step may be intact.
        ValueError: the checkpoint is of another format version, or not a classifier's.
        TypeError: `path` or `step` is of the wrong type.

    Example:
        >>> from flax_lstm import load_classifier
        >>> load_classifier('no/such/folder')  # doctest: +ELLIPSIS
        Traceback (most recent call last):
            ...
        flax_lstm.checkpoint.NoCheckpointError: path: expected a folder of ...

    Source: https://orbax.readthedocs.io/
    """
    import orbax.checkpoint as ocp

    config = read_config(path, step)
    try:
        model = classifier_from_options(dict(config["model"]))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"path: expected a classifier's options in step {config['step']} of "
            f"{path}, got {config.get('model')!r} ({error})"
        ) from error
    target = ocp.args.StandardRestore(abstract_params(model))
    # Under a jitted caller, too, Orbax makes arrays, not values that are traced.
    with (
        jax.ensure_compile_time_eval(),
        _reader(path) as manager,
        _of_a_classifier(path, config["step"]),
    ):
        restored = manager.restore(
            config["step"], args=ocp.args.Composite(params=target)
        )
    return model, {"params": restored[PARAMS]}


@contextlib.contextmanager
def _of_a_classifier(path, step):
    """For reading an item of a checkpoint whose files are those that were written."""
    try:
        yield
    except (KeyError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"path: expected a classifier's checkpoint in step {step} of {path}, got "
            f"another ({reason})"
        ) from error


def _reader(path):
    import orbax.checkpoint as ocp

    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(
            f"path: expected a folder of checkpoints, got {check.shown(path)}"
        )
    if not os.path.isdir(path):
        shown = os.fspath(path) or "''"
        raise NoCheckpointError(
            "path", f"expected a folder of checkpoints, got {shown}"
        )
    # Reading is this process's own affair: without this, Orbax would wait for all
    # processes of a run.
    this = jax.process_index()
    options = ocp.CheckpointManagerOptions(
        read_only=True,
        create=False,
        save_interval_steps=0,
        multiprocessing_options=ocp.options.MultiprocessingOptions(
            primary_host=this,
            active_processes={this},
            barrier_sync_key_prefix=f"flax_lstm_reader_{this}",
        ),
    )
    logger = logging.getLogger("absl")
    logger.addFilter(_is_not_read_only_warning)
    try:
        return ocp.CheckpointManager(orbax_path(path), options=options)
    finally:
        logger.removeFilter(_is_not_read_only_warning)


def _is_not_read_only_warning(record: logging.LogRecord) -> bool:
    """Drops Orbax's warning that a folder is read-only, which was asked for."""
    return "read only" not in str(record.msg)
