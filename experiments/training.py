"""Training: a compiled step over a TrainState, run in chunks of steps.

The examples stay on the device as uint8. One compiled program runs any number of
steps of an epoch, so the host only decides how many: few enough that a progress
bar moves and a signal is heard about twice a second.
"""

import functools
import time
from collections.abc import Callable

import flax.struct
import jax
import jax.numpy as jnp
import optax
from flax.training import train_state

from experiments.batches import (
    DeviceSplit,
    Totals,
    add,
    num_batches,
    padded_order,
    score,
    take_batch,
)
from flax_lstm import LSTMClassifier, scale_by_torch_biases

_CHUNK_SECONDS = 0.5


class TrainState(train_state.TrainState):
    """Flax's TrainState, and the two keys that everything random follows from."""

    shuffle_key: jax.Array
    dropout_key: jax.Array


def optimizer(learning_rate: float) -> optax.GradientTransformation:
    """Adam on torch's trajectory: its two biases per gate move twice as far as one."""
    return optax.chain(optax.adam(learning_rate), scale_by_torch_biases())


def create_state(
    model: LSTMClassifier, learning_rate: float, seed: int, shape: tuple[int, ...]
) -> TrainState:
    """A fresh state; `shape` (T, I) of one example."""
    init_key, shuffle_key, dropout_key = jax.random.split(jax.random.key(seed), 3)
    return TrainState.create(
        apply_fn=model.apply,
        params=model.init(init_key, jnp.zeros((1, *shape)))["params"],
        tx=optimizer(learning_rate),
        shuffle_key=shuffle_key,
        dropout_key=dropout_key,
    )


class Epochs(flax.struct.PyTreeNode):
    """Runs epochs over one training split; `batch_size` and `white` are static."""

    split: DeviceSplit
    batch_size: int = flax.struct.field(pytree_node=False)
    white: int = flax.struct.field(pytree_node=False)

    @property
    def steps(self) -> int:
        """Number of steps in an epoch; the last one may be a smaller batch."""
        return num_batches(len(self.split.labels), self.batch_size)

    def run(
        self, state: TrainState, epoch: int, on_progress: Callable[[int], None]
    ) -> tuple[TrainState, Totals]:
        """One epoch over a fresh permutation of the examples.

        Args:
            state: its buffers are donated.
            epoch: number of the epoch, which the permutation follows from.
            on_progress: called after every chunk with its number of steps.

        Returns:
            The new state, and the totals as the steps saw them while training.
        """
        order = _shuffled_order(self, state.shuffle_key, epoch)
        totals = Totals.zero()
        done, chunk = 0, 1
        while done < self.steps:
            start = time.perf_counter()
            last = min(done + chunk, self.steps)
            state, totals = _run_steps(self, state, totals, order, done, last)
            jax.block_until_ready(totals)
            step_seconds = (time.perf_counter() - start) / (last - done)
            on_progress(last - done)
            done = last
            chunk = max(1, min(2 * chunk, int(_CHUNK_SECONDS / step_seconds)))
        return state, totals


@functools.partial(jax.jit)
def _shuffled_order(epochs: Epochs, key: jax.Array, epoch: int) -> jax.Array:
    key = jax.random.fold_in(key, epoch)
    order = jax.random.permutation(key, len(epochs.split.labels))
    return padded_order(order, epochs.batch_size)


@functools.partial(jax.jit, donate_argnames=("state", "totals"))
def _run_steps(epochs: Epochs, state, totals, order, first, last):
    """Steps `first` to `last` (traced, so one program serves every chunk)."""

    def body(step, carry):
        state, totals = carry
        batch = take_batch(epochs.split, order, step, epochs.batch_size, epochs.white)
        state, batch_totals = train_step(state, batch)
        return state, add(totals, batch_totals)

    return jax.lax.fori_loop(first, last, body, (state, totals))


def train_step(state: TrainState, batch) -> tuple[TrainState, Totals]:
    """One step on the mean cross-entropy of the batch's real examples."""
    dropout_key = jax.random.fold_in(state.dropout_key, state.step)

    def mean_loss(params):
        logits = state.apply_fn(
            {"params": params},
            batch.inputs,
            deterministic=False,
            rngs={"dropout": dropout_key},
        )
        totals = score(logits, batch)
        return totals.loss / totals.examples, totals

    grads, totals = jax.grad(mean_loss, has_aux=True)(state.params)
    return state.apply_gradients(grads=grads), totals
