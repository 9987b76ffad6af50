"""The answer of a classifier for one image."""

import dataclasses
from typing import Any

import jax
import numpy as np

from experiments.model_input import ModelInput
from flax_lstm import SequenceClassifier


@dataclasses.dataclass(frozen=True)
class Prediction:
    """`image` (rows, columns) uint8, `logits` and `probabilities` (num_classes,)."""

    image: np.ndarray
    white: int
    logits: np.ndarray
    probabilities: np.ndarray
    label: int | None

    @property
    def answer(self) -> int:
        return int(np.argmax(self.logits))

    def text(self) -> str:
        """Label (if known), prediction, and every class with its probability."""
        label = "" if self.label is None else f"Label: {self.label}\n"
        rows = "\n".join(
            f"  {digit}: {probability:8.4%}  (logit {logit:+.3f})"
            for digit, (probability, logit) in enumerate(
                zip(self.probabilities, self.logits, strict=True)
            )
        )
        return f"{label}Prediction: {self.answer}\n{rows}"


def predict(
    model: SequenceClassifier,
    variables: Any,
    image: np.ndarray,
    model_input: ModelInput,
    label: int | None = None,
) -> Prediction:
    """The prediction for one image in the form of the model's dataset."""
    logits = model.apply(variables, model_input.of_pixels(image[None]))[0]
    return Prediction(
        image=image,
        white=model_input.white,
        logits=np.asarray(logits),
        probabilities=np.asarray(jax.nn.softmax(logits)),
        label=label,
    )
