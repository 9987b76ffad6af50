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
from experiments.devices import ROWS
from experiments.model_input import ModelInput
from flax_lstm import SequenceClassifier

_BATCH_SIZE = 500


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
    batch_size = min(_BATCH_SIZE, examples)

    @functools.partial(
        jax.shard_map, mesh=mesh, in_specs=PartitionSpec(), out_specs=PartitionSpec()
    )
    def on_every_device(params, split):
        order = shares(jnp.arange(examples), batch_size, mesh.size)

        def body(step, totals):
            batch = take_share(split, order, step, model_input.white)
            logits = model.apply({"params": params}, model_input.of(batch.inputs))
            return add(totals, score(logits, batch))

        steps = num_batches(examples, batch_size)
        zero = jax.lax.pcast(Totals.zero(), ROWS, to="varying")
        return jax.lax.psum(jax.lax.fori_loop(0, steps, body, zero), ROWS)

    return on_every_device(params, split)
