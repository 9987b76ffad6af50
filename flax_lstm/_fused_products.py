"""How the fused LSTM's products are laid out; the results are the same.

Measured on XLA:CPU (JAX 0.10.2) only; see `experiments/BENCHMARK.md`.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from flax_lstm._dtypes import at_least_float32
from flax_lstm._lstm_weights import GATES, Weights

# What a core's own cache holds: data up to this size costs nothing to read again.
_CACHED_BYTES = 2**20
# Largest recurrent weights of a layer that a CPU multiplies as one product.
_JOINED_BYTES = 2**18
_FEW_ROWS = 8
# Unroll factors on other platforms: the first that divides T, else the last.
_UNROLL = (*range(14, 4, -1), 8)


class ProductPlan(NamedTuple):
    """What a loop multiplies, and where."""

    hoists: bool  # The inputs' product stands before the loop.
    joins: bool  # One product of h for all gates; only if `hoists`.
    unroll: int = 1  # Steps per iteration of the loop.


def plan_for_cpu(weights: Weights, x: jax.Array) -> ProductPlan:
    """The plan that is fastest on a CPU.

    - While everything is small, the fixed cost of a product dominates: one product for
      all gates, and the input product before the loop, whose result stays in the cache.
    - Otherwise a product per gate: after one for all gates XLA:CPU takes more, and
      slower, passes to compute the gates. Inside the loop, the input product reads the
      input weights, I elements per unit, at every step; before the loop, it writes and
      reads its own result, 2·B elements per unit and step. Reading cached weights is
      free.

    A symbolic size (jax.export) counts as a large one.
    """
    steps, batch, inputs = x.shape
    width = len(GATES) * weights.h[0].shape[-1] * x.dtype.itemsize
    recurrent = width * weights.h[0].shape[0]
    both = recurrent + width * inputs

    def at_most(size, bound):
        return isinstance(size, int) and size <= bound

    stays = at_most(batch * steps * width, _CACHED_BYTES) or at_most(batch, _FEW_ROWS)
    if recurrent <= _JOINED_BYTES and stays:
        return ProductPlan(hoists=True, joins=True)
    hoists = both > _CACHED_BYTES and at_most(2 * batch, inputs)
    return ProductPlan(hoists=hoists, joins=False)


def plan_elsewhere(x: jax.Array) -> ProductPlan:
    """The plan for other platforms: the one with the fewest kernels per step.

    On a GPU a step's kernels take less time than launching them. XLA compiles a step to
    one product and two to seven other kernels, and one more to count the steps; in an
    unrolled body it fuses the others. If the number of unrolled steps does not divide
    T, XLA splits in two what all steps read, which takes a copy.
    """
    steps = x.shape[0]
    if not isinstance(steps, int):
        return ProductPlan(hoists=True, joins=True)
    unroll = next((n for n in _UNROLL if steps % n == 0), _UNROLL[-1])
    return ProductPlan(hoists=True, joins=True, unroll=unroll)


def gate_products(
    weights: Weights, x: jax.Array, plan: ProductPlan
) -> tuple[Any, Callable[..., list[jax.Array]]]:
    """The loop's inputs, and a function of a step's input and h to each gate's z."""
    if not plan.hoists:
        pairs = zip(weights.x, weights.h, strict=True)
        kernels = [jnp.concatenate(pair) for pair in pairs]

        def multiply_both(x, h):
            x_and_h = jnp.concatenate([x, h], axis=-1)
            return [x_and_h @ kernel for kernel in kernels]

        return x, multiply_both

    # Only the sum is rounded to the dtype of the computation, not both of its terms.
    wide = at_least_float32(x.dtype)
    product = functools.partial(jnp.matmul, preferred_element_type=wide)
    joined = jnp.concatenate(weights.h, axis=-1) if plan.joins else None

    def multiply(h):
        if joined is not None:
            return jnp.split(product(h, joined), len(GATES), axis=-1)
        return [product(h, kernel) for kernel in weights.h]

    def add_to_hoisted(z_x, h):
        pairs = zip(z_x, multiply(h), strict=True)
        return [(z + z_h).astype(h.dtype) for z, z_h in pairs]

    # One array per gate even so: XLA:CPU is slow where it has to split each step's sum.
    return tuple(product(x, kernel) for kernel in weights.x), add_to_hoisted
