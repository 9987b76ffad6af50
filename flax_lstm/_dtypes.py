"""The dtype in which sums are accumulated."""

import jax.numpy as jnp
from jax.typing import DTypeLike


def at_least_float32(dtype: DTypeLike) -> DTypeLike:
    """The dtype for sums over time, and over products, of values in `dtype`."""
    # Not `promote_types`, which `jax_numpy_dtype_promotion='strict'` refuses.
    return dtype if jnp.finfo(dtype).bits >= 32 else jnp.float32
