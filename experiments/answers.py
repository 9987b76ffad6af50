"""The answers of a classifier to a whole split, example by example."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.data.dataset import Split
from experiments.model_input import ModelInput

_BATCH_SIZE = 500


@dataclasses.dataclass(frozen=True)
class Answers:
    """Of N examples: `labels`, `answers` (N,), `probabilities` (N, num_classes).

    `losses` (N,) are cross-entropies in nats: how little the label was believed.
    """

    labels: np.ndarray
    answers: np.ndarray
    probabilities: np.ndarray
    losses: np.ndarray

    def mistakes(self) -> np.ndarray:
        """Indices of the wrong answers, the one with the largest loss first."""
        hardest = self.hardest()
        return hardest[self.answers[hardest] != self.labels[hardest]]

    def hardest(self) -> np.ndarray:
        """Indices of all examples, the one with the largest loss first."""
        return np.argsort(-self.losses, kind="stable")


def answer_all(
    model: Any, variables: Any, split: Split, model_input: ModelInput
) -> Answers:
    """The answers of `model` to every example of `split`, in the split's order."""
    probabilities, losses = jax.device_get(
        _answer_all(model, variables, split.images, split.labels, model_input)
    )
    return Answers(split.labels, probabilities.argmax(-1), probabilities, losses)


@functools.partial(jax.jit, static_argnames=("model", "model_input"))
def _answer_all(model, variables, images, labels, model_input):
    def logits_of(image):
        return model.apply(variables, model_input.of_pixels(image[None]))[0]

    logits = jax.lax.map(logits_of, images, batch_size=_BATCH_SIZE)
    logits = logits.astype(jnp.float32)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return jax.nn.softmax(logits), losses
