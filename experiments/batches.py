"""Batches of device-resident examples, cut inside compiled code.

A batch may reach past the last example: those places are padded with example 0 and
get the weight 0, so that every example counts exactly once at any batch size.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from experiments.data.dataset import Split


class DeviceSplit(NamedTuple):
    """A split on the device: `images` (N, T, I) uint8, `labels` (N,) int32."""

    images: jax.Array
    labels: jax.Array

    @classmethod
    def of(cls, split: Split) -> "DeviceSplit":
        return cls(jnp.asarray(split.images), jnp.asarray(split.labels))


class Batch(NamedTuple):
    """`inputs` (B, T, I) float32 in [0, 1], `labels` (B,), `weights` (B,) of 0 or 1."""

    inputs: jax.Array
    labels: jax.Array
    weights: jax.Array


class Totals(NamedTuple):
    """Sums over examples: cross-entropy in nats, hits, and examples."""

    loss: jax.Array
    correct: jax.Array
    examples: jax.Array

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


def padded_order(order: jax.Array, batch_size: int) -> jax.Array:
    """`order` (N,), a permutation, lengthened with -1 to a multiple of batch_size."""
    return jnp.pad(order, (0, -len(order) % batch_size), constant_values=-1)


def take_batch(
    split: DeviceSplit, order: jax.Array, step: jax.Array, batch_size: int, white: int
) -> Batch:
    """Batch number `step` of `padded_order`."""
    index = jax.lax.dynamic_slice_in_dim(order, step * batch_size, batch_size)
    real = index >= 0
    index = jnp.maximum(index, 0)
    return Batch(
        inputs=split.images[index].astype(jnp.float32) / white,
        labels=split.labels[index],
        weights=real.astype(jnp.float32),
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
