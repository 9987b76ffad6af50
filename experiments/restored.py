"""A classifier restored from a workdir, with the dataset that it was trained on."""

import contextlib
import dataclasses
import os
import time
from typing import Any

import numpy as np

from experiments import answers, lock, prediction
from experiments.answers import Answers
from experiments.data import choose
from experiments.data.dataset import Dataset, Split
from experiments.devices import require_device
from experiments.errors import RunError
from experiments.images import FORMS, Form, read_digit
from experiments.model_input import ModelInput
from experiments.prediction import Prediction
from flax_lstm import SequenceClassifier, load_classifier
from flax_lstm.checkpoint import (
    DamagedCheckpointError,
    NoCheckpointError,
    checkpoint_steps,
    read_config,
    verify,
)

_MAX_SAVE_SECONDS = 10


@dataclasses.dataclass(frozen=True)
class RestoredClassifier:
    """A model, its variables, and the record of its checkpoint."""

    workdir: str
    model: SequenceClassifier
    variables: Any
    dataset: str
    sequence: str
    validated: bool
    epoch: int
    step: int

    @property
    def description(self) -> str:
        record = f"epoch {self.epoch}, step {self.step}"
        return f"Restored: {record}, trained on {self.dataset}"

    def picture_path(self, name: str) -> str:
        return os.path.join(self.workdir, f"{name}.png")

    @property
    def form(self) -> Form:
        """The form that an image is brought to for this model.

        Raises:
            RunError: the model was trained on something other than digits.
        """
        if self.dataset not in FORMS:
            raise RunError(
                f"--workdir: expected a model of digits ({' or '.join(FORMS)}), got "
                f"one of {self.dataset}"
            )
        return FORMS[self.dataset]

    @property
    def model_input(self) -> ModelInput:
        """How images of its dataset become what the model reads."""
        _, white = choose.side_and_white(self.dataset)
        return ModelInput(white, self.sequence)

    def answer_all(self, data: Dataset) -> Answers:
        """The answers to all test examples of its dataset."""
        return answers.answer_all(
            self.model, self.variables, data.test, self.model_input
        )

    def predict_image(self, path: str) -> Prediction:
        """The prediction for a PNG or JPEG of one digit."""
        return self._predict(read_digit(path, self.form))

    def predict_example(
        self, split_name: str, index: int, data_dir: str | None, manual_dir: str | None
    ) -> Prediction:
        """The prediction for an example of the dataset that it was trained on."""
        data = choose.load(self.dataset, data_dir, manual_dir, validate=self.validated)
        split = data.split(split_name)
        if not 0 <= index < len(split):
            raise RunError(
                f"--index: expected 0 to {len(split) - 1} in the {split_name} split of "
                f"{self.dataset}, got {index}"
            )
        return self.predict_one(split, index)

    def predict_one(self, split: Split, index: int) -> Prediction:
        """The prediction for an example of a split of its dataset."""
        return self._predict(split.images[index], int(split.labels[index]))

    def _predict(self, image: np.ndarray, label: int | None = None) -> Prediction:
        return prediction.predict(
            self.model, self.variables, image, self.model_input, label
        )


def restore(workdir: str, step: int | None = None) -> RestoredClassifier:
    """The classifier of `workdir`'s newest checkpoint, or of that of `step`.

    If a run is under way there, tries for some seconds: a checkpoint that is being
    saved, or removed as an old one, looks like a damaged one.

    Raises:
        RunError: no folder, no checkpoint, a damaged one, or one that can't be read; or
            JAX finds no device.
    """
    require_device()
    end = time.monotonic() + _MAX_SAVE_SECONDS
    while True:
        try:
            return _restore(workdir, step)
        except _MayPass:
            if time.monotonic() > end or not lock.is_held(workdir):
                raise
        time.sleep(0.1)


class _MayPass(RunError):
    """An error that also occurs while a checkpoint is saved, or an old one removed."""


def _restore(workdir: str, step: int | None) -> RestoredClassifier:
    try:
        config = read_config(workdir, step)
        model, variables = load_classifier(workdir, config["step"])
        return RestoredClassifier(
            workdir=workdir,
            model=model,
            variables=variables,
            dataset=config["dataset"]["name"],
            sequence=config["hyper_parameters"]["sequence"],
            validated=config["hyper_parameters"]["validate"],
            epoch=config["epoch"],
            step=config["step"],
        )
    except DamagedCheckpointError as error:
        raise _MayPass(f"--workdir: {error}; {_advice(workdir)}") from error
    except NoCheckpointError as error:
        flag = {"path": "--workdir", "step": "--step"}[error.argument]
        # A step that the user named has passed.
        kind = _MayPass if step is None else RunError
        raise kind(f"{flag}: {error.reason}") from error
    except Exception as error:  # Orbax raises many kinds for a damaged file.
        reason = str(error) or type(error).__name__
        raise _MayPass(f"--workdir: {workdir} can't be read: {reason}") from error


def _advice(workdir: str) -> str:
    """What to do where a checkpoint is damaged; no other one is used unasked."""
    with contextlib.suppress(FileNotFoundError):  # A run removes old ones.
        for step in reversed(checkpoint_steps(workdir)):
            with contextlib.suppress(DamagedCheckpointError):
                verify(workdir, step)
                return f"the newest sound checkpoint is that of --step={step}"
    return "no other checkpoint there is sound"
