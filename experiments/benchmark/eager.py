"""A Flax model called outside of `jax.jit`, as torch's modules are called."""

from typing import Any

import flax.linen as nn
import jax
import optax

from experiments.benchmark.timing import Work


def inference(model: nn.Module, params: Any, inputs: Any) -> Work:
    """Logits of one batch."""
    variables = {"params": params}
    return lambda: jax.block_until_ready(model.apply(variables, inputs))


def gradient(model: nn.Module, params: Any, inputs: Any, labels: Any) -> Work:
    """Of the mean loss, by all parameters; no step is taken."""

    def loss(params):
        logits = model.apply({"params": params}, inputs)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    return lambda: jax.block_until_ready(jax.grad(loss)(params))
