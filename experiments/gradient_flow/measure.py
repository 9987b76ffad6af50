"""The size of a Jacobian with respect to each step of a sequence."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flax_lstm import SequenceClassifier


def of_last_output(stack: Any, params: Any, inputs: jax.Array) -> np.ndarray:
    """‖∂ output_T / ∂ x_t‖, Frobenius, at each step t, the mean over `inputs`.

    In float64: where gradients vanish, they soon underflow in float32.

    Args:
        stack: `StackedLSTM` or one of its kin, batch first, in one direction.
        params: its parameters.
        inputs: (N, T, I).

    Returns:
        (T,), float64.
    """
    with jax.enable_x64(True):
        return np.asarray(_of_last_output(stack, *_doubled((params, inputs))))


def of_logits(model: SequenceClassifier, params: Any, inputs: jax.Array) -> np.ndarray:
    """‖∂ logits / ∂ x_t‖ of a classifier, as `of_last_output`."""
    with jax.enable_x64(True):
        return np.asarray(_of_logits(model, *_doubled((params, inputs))))


@functools.partial(jax.jit, static_argnums=0)
def _of_last_output(stack, params, inputs):
    return _step_norms(lambda x: stack.apply({"params": params}, x)[0][-1], inputs)


@functools.partial(jax.jit, static_argnums=0)
def _of_logits(model, params, inputs):
    return _step_norms(lambda x: model.apply({"params": params}, x), inputs)


def _step_norms(function, inputs):
    """`function` maps one sequence (T, I) to a vector."""
    jacobians = jax.vmap(jax.jacrev(function))(inputs)  # (N, vector, T, I)
    return jnp.sqrt(jnp.square(jacobians).sum(axis=(1, 3))).mean(axis=0)


def _doubled(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), tree)
