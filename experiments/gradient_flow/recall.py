"""A task that nothing but memory solves: name what stood at the first step."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from flax_lstm import SequenceClassifier

SYMBOLS = 4
_NOISE = 0.3
_ROWS = 64
_TEST_ROWS = 1024
_LEARNING_RATE = 3e-3
_LARGEST_NORM = 1.0


class Trained(NamedTuple):
    params: Any
    accuracy: float
    """Of 1,024 sequences that were not trained on."""


def examples(key: jax.Array, rows: int, steps: int) -> tuple[jax.Array, jax.Array]:
    """Sequences (rows, steps, 4) and labels (rows,).

    The first step is one of four symbols, one-hot; all others are noise of standard
    deviation 0.3.
    """
    symbol_key, noise_key = jax.random.split(key)
    labels = jax.random.randint(symbol_key, (rows,), 0, SYMBOLS)
    noise = _NOISE * jax.random.normal(noise_key, (rows, steps, SYMBOLS))
    return noise.at[:, 0].set(jax.nn.one_hot(labels, SYMBOLS)), labels


def train(
    model: SequenceClassifier, params: Any, steps: int, updates: int, seed: int
) -> Trained:
    """`updates` steps of Adam on fresh batches of 64 sequences.

    Gradients are clipped to a norm of 1, without which one that explodes would end
    the training; the learning rate falls from 3e-3 to 0 along a cosine.
    """
    rate = optax.cosine_decay_schedule(_LEARNING_RATE, updates)
    optimizer = optax.chain(optax.clip_by_global_norm(_LARGEST_NORM), optax.adam(rate))

    def mean_loss(params, sequences, labels):
        logits = model.apply({"params": params}, sequences)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return losses.mean()

    def update(carry, key):
        params, state = carry
        gradients = jax.grad(mean_loss)(params, *examples(key, _ROWS, steps))
        changes, state = optimizer.update(gradients, state, params)
        return (optax.apply_updates(params, changes), state), None

    test_key, *keys = jax.random.split(jax.random.key(seed), updates + 1)
    start = params, optimizer.init(params)
    (params, _), _ = jax.jit(lambda start, keys: jax.lax.scan(update, start, keys))(
        start, jnp.stack(keys)
    )
    sequences, labels = examples(test_key, _TEST_ROWS, steps)
    logits = jax.jit(model.apply)({"params": params}, sequences)
    accuracy = float((logits.argmax(axis=-1) == labels).mean())
    return Trained(params, accuracy)
