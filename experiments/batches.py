"""Batches of device-resident examples, cut inside compiled code.

A batch is cut into a share for each device. It may reach past the last example, and
its rows need not divide evenly: what is missing is padded with example 0 and gets
the weight 0, so that every example counts exactly once at any batch size and on any
number of devices.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from experiments.data.dataset import Split
from experiments.devices import device_index, gathered


class DeviceSplit(NamedTuple):
    """A split on the device: `images` (N, rows, columns) uint8, `labels` (N,) int32."""

    images: jax.Array
    labels: jax.Array

    @classmethod
    def of(cls, split: Split, mesh: Mesh) -> "DeviceSplit":
        """All examples on every device of `mesh`, of this and other processes."""
        return cls(
            gathered(split.images, split.total, mesh),
            gathered(split.labels, split.total, mesh),
        )


class Batch(NamedTuple):
    """`inputs` float32 in [0, 1], `labels` (B,), `weights` (B,) of 0 or 1.

    The inputs are images (B, rows, columns) at first and sequences (B, T, I) where a
    model reads them. In a device's share, B is the size of the share, and `rows` (B,)
    are the numbers of its rows in the whole batch.
    """

    inputs: jax.Array
    labels: jax.Array
    weights: jax.Array
    rows: jax.Array


class Totals(NamedTuple):
    """Sums over examples: cross-entropy in nats, hits, and examples."""

    loss: jax.Array | np.ndarray
    correct: jax.Array | np.ndarray
    examples: jax.Array | np.ndarray

    @classmethod
    def zero(cls) -> "Totals":
        return cls(jnp.zeros(()), jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32))

    def means(self) -> dict[str, float | int]:
        """Mean loss and accuracy per example, and the number of examples."""
        examples = int(self.examples)
        return {
            "loss": float(self.loss) / examples,
            "accuracy": int(self.correct) / examples,
            "examples": examples,
        }


def num_batches(examples: int, batch_size: int) -> int:
    return -(-examples // batch_size)


def shares(order: jax.Array, batch_size: int, devices: int) -> jax.Array:
    """`order` (N,), a permutation, as (batches, devices, rows), padded with -1."""
    batches = num_batches(len(order), batch_size)
    rows = -(-batch_size // devices)
    missing = batches * batch_size - len(order)
    order = jnp.pad(order, (0, missing), constant_values=-1)
    order = order.reshape(batches, batch_size)
    missing = devices * rows - batch_size
    order = jnp.pad(order, ((0, 0), (0, missing)), constant_values=-1)
    return order.reshape(batches, devices, rows)


def take_share(
    split: DeviceSplit, shares: jax.Array, step: jax.Array, white: int
) -> Batch:
    """This device's share of batch number `step`, inside `on_every_device`."""
    device = device_index()
    index = shares[step, device]
    real = index >= 0
    index = jnp.maximum(index, 0)
    return Batch(
        inputs=split.images[index].astype(jnp.float32) / white,
        labels=split.labels[index],
        weights=real.astype(jnp.float32),
        rows=device * len(index) + jnp.arange(len(index)),
    )


def score(logits: jax.Array, batch: Batch) -> Totals:
    """Totals of one batch, padding left out."""
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch.labels)
    hits = (jnp.argmax(logits, axis=-1) == batch.labels) & (batch.weights > 0)
    return Totals(
        loss=jnp.sum(losses * batch.weights),
        correct=jnp.sum(hits, dtype=jnp.int32),
        examples=jnp.sum(batch.weights).astype(jnp.int32),
    )


def add(a: Totals, b: Totals) -> Totals:
    return Totals(*(x + y for x, y in zip(a, b, strict=True)))
