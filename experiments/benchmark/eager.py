"""A Flax model called outside of `jax.jit`, as torch's modules are called."""

from typing import Any

import flax.linen as nn
import jax

from experiments.benchmark.timing import Work


def inference(model: nn.Module, params: Any, inputs: Any) -> Work:
    """Logits of one batch."""
    variables = {"params": params}
    return lambda: jax.block_until_ready(model.apply(variables, inputs))


def gradient(model: nn.Module, params: Any, inputs: Any) -> Work:
    """The gradient of the logits' sum with respect to all parameters.

    Operation by operation, a loss of optax's would take JAX as long as the model does.
    """

    def total(params):
        return model.apply({"params": params}, inputs).sum()

    return lambda: jax.block_until_ready(jax.grad(total)(params))
