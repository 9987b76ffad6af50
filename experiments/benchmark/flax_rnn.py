"""Flax's own RNN, stacked the ordinary way, as the other side of the comparison."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax.training import train_state

from experiments.benchmark import compiling
from experiments.benchmark.eager import Eager
from experiments.benchmark.sizes import CLASSES, Sizes, examples
from experiments.benchmark.timing import Work

_CELLS = {"lstm": nn.OptimizedLSTMCell, "gru": nn.GRUCell, "rnn": nn.SimpleCell}


class RNNClassifier(nn.Module):
    """`nn.RNN` over Flax's cells, one on the other, and a dense head."""

    cell: str
    hidden: int
    layers: int

    @nn.compact
    def __call__(self, x):
        """Logits (B, classes) of x (B, T, I)."""
        for _ in range(self.layers):
            x = nn.RNN(_CELLS[self.cell](self.hidden))(x)
        return nn.Dense(CLASSES)(x[:, -1])


class FlaxRNN(Eager):
    """One jitted call on JAX's default device, as its users write it."""

    def __init__(self, steps_per_call: int = 1):
        self.steps_per_call = steps_per_call

    def training(self, sizes: Sizes) -> Work:
        """`steps_per_call` steps: forward, backward, Adam; the state is donated."""
        state, batch = self._state(sizes), self._batch(sizes)
        compiled = compiling.compiled(self._step().lower(state, *batch))

        def work():
            nonlocal state
            state = compiled(state, *batch)
            jax.block_until_ready(state)

        return work

    def inference(self, sizes: Sizes) -> Work:
        """Logits of one batch."""
        model, params, inputs = self.example(sizes)
        variables = {"params": params}
        compiled = compiling.compiled(jax.jit(model.apply).lower(variables, inputs))
        return lambda: jax.block_until_ready(compiled(variables, inputs))

    def example(self, sizes: Sizes) -> tuple[RNNClassifier, Any, jax.Array]:
        """A model, its parameters, and one batch of inputs."""
        inputs, _ = self._batch(sizes)
        return self._model(sizes), self._state(sizes).params, inputs

    def compiling(self, sizes: Sizes) -> Work:
        """Tracing, lowering and compiling the training step anew."""
        state, batch = self._state(sizes), self._batch(sizes)

        def work():
            jax.clear_caches()
            self._step().lower(state, *batch).compile()

        return work

    def _model(self, sizes: Sizes) -> RNNClassifier:
        return RNNClassifier(sizes.cell, sizes.hidden, sizes.layers)

    def _state(self, sizes: Sizes) -> train_state.TrainState:
        model = self._model(sizes)
        inputs = jnp.zeros((1, sizes.steps, sizes.inputs))
        return train_state.TrainState.create(
            apply_fn=model.apply,
            params=jax.jit(model.init)(jax.random.key(0), inputs)["params"],
            tx=optax.adam(1e-3),
        )

    def _batch(self, sizes: Sizes) -> tuple[jax.Array, jax.Array]:
        return jax.device_put(examples(sizes))

    def _step(self):
        def step(state, inputs, labels):
            def loss(params):
                logits = state.apply_fn({"params": params}, inputs)
                losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
                return losses.mean()

            return state.apply_gradients(grads=jax.grad(loss)(state.params))

        def steps(state, inputs, labels):
            return jax.lax.fori_loop(
                0, self.steps_per_call, lambda _, s: step(s, inputs, labels), state
            )

        several = self.steps_per_call > 1
        return jax.jit(steps if several else step, donate_argnums=0)
