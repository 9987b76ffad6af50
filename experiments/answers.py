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

    @property
    def correct(self) -> int:
        """How many answers are right."""
        return int((self.answers == self.labels).sum())

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
    starts = range(0, len(split), _BATCH_SIZE)
    batches = [split.images[start : start + _BATCH_SIZE] for start in starts]
    logits = jnp.concatenate(
        [_logits(model, variables, batch, model_input) for batch in batches]
    )
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, split.labels)
    probabilities, losses = jax.device_get((jax.nn.softmax(logits), losses))
    return Answers(split.labels, probabilities.argmax(-1), probabilities, losses)


@functools.partial(jax.jit, static_argnames=("model", "model_input"))
def _logits(model, variables, images, model_input):
    logits = model.apply(variables, model_input.of_pixels(images))
    return logits.astype(jnp.float32)
