"""Flax models called outside of `jax.jit`, as torch's modules are called."""

import abc
from typing import Any

import flax.linen as nn
import jax

from experiments.benchmark.sizes import Sizes
from experiments.benchmark.timing import Work


class Eager(abc.ABC):
    """A contender's two works that are done outside of `jax.jit`, on one device."""

    @abc.abstractmethod
    def example(self, sizes: Sizes) -> tuple[nn.Module, Any, jax.Array]:
        """A model, its parameters, and one batch of inputs."""

    def eager_inference(self, sizes: Sizes) -> Work:
        """Logits of one batch."""
        model, params, inputs = self.example(sizes)
        variables = {"params": params}
        return lambda: jax.block_until_ready(model.apply(variables, inputs))

    def eager_gradient(self, sizes: Sizes) -> Work:
        """The gradient of the logits' sum with respect to all parameters.

        Operation by operation, a loss of optax's would take JAX as long as the model
        does.
        """
        model, params, inputs = self.example(sizes)

        def total(params):
            return model.apply({"params": params}, inputs).sum()

        return lambda: jax.block_until_ready(jax.grad(total)(params))
