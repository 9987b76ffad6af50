"""Scoring a classifier on a whole split, every example exactly once."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from experiments.batches import (
    DeviceSplit,
    Totals,
    add,
    num_batches,
    padded_order,
    score,
    take_batch,
)
from flax_lstm import LSTMClassifier

_BATCH_SIZE = 500


@functools.partial(jax.jit, static_argnames=("model", "white"))
def evaluate(
    model: LSTMClassifier, params: Any, split: DeviceSplit, white: int
) -> Totals:
    """Totals of `model` over `split`, without dropout."""
    examples = len(split.labels)
    batch_size = min(_BATCH_SIZE, examples)
    order = padded_order(jnp.arange(examples), batch_size)

    def body(step, totals):
        batch = take_batch(split, order, step, batch_size, white)
        return add(totals, score(model.apply({"params": params}, batch.inputs), batch))

    steps = num_batches(examples, batch_size)
    return jax.lax.fori_loop(0, steps, body, Totals.zero())
