"""Scoring a classifier on a whole split, every example exactly once."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from experiments.batches import (
    DeviceSplit,
    Totals,
    add,
    num_batches,
    score,
    shares,
    take_share,
)
from experiments.devices import device_varying, on_every_device, sum_of_devices
from experiments.model_input import ModelInput
from flax_lstm import SequenceClassifier

BATCH_SIZE = 500


@functools.partial(jax.jit, static_argnames=("model", "model_input", "mesh"))
def evaluate(
    model: SequenceClassifier,
    params: Any,
    split: DeviceSplit,
    model_input: ModelInput,
    mesh: Mesh,
) -> Totals:
    """Totals of `model` over `split`, without dropout, on the devices of `mesh`."""
    examples = len(split.labels)
    batch_size = min(BATCH_SIZE, examples)

    def score_share(params, split):
        order = shares(jnp.arange(examples), batch_size, mesh.size)

        def body(step, totals):
            batch = take_share(split, order, step, model_input.white)
            logits = model.apply({"params": params}, model_input.of(batch.inputs))
            return add(totals, score(logits, batch))

        steps = num_batches(examples, batch_size)
        zero = device_varying(Totals.zero())
        return sum_of_devices(jax.lax.fori_loop(0, steps, body, zero))

    everywhere = PartitionSpec()
    return on_every_device(score_share, mesh, everywhere, everywhere)(params, split)
