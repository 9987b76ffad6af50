"""Dtypes of what is summed."""

import jax.numpy as jnp
from jax.typing import DTypeLike


def at_least_float32(dtype: DTypeLike) -> DTypeLike:
    """For sums over time and over products of numbers in `dtype`."""
    # Not `promote_types`, which `jax_numpy_dtype_promotion='strict'` refuses.
    return dtype if jnp.finfo(dtype).bits >= 32 else jnp.float32
