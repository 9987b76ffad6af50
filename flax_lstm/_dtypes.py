"""Dtypes of what is summed, and of what libraries take."""

from typing import Any

import jax.numpy as jnp
from jax.typing import DTypeLike


def at_least_float32(dtype: DTypeLike) -> DTypeLike:
    """For sums over time and over products of numbers in `dtype`."""
    # Not `promote_types`, which `jax_numpy_dtype_promotion='strict'` refuses.
    return dtype if jnp.finfo(dtype).bits >= 32 else jnp.float32


def require_float32(dtype: Any, implementation: str) -> None:
    """`dtype` is what `implementation` computes in; else a ValueError."""
    if jnp.dtype(dtype) != jnp.float32:
        raise ValueError(
            f"dtype: expected float32 with implementation={implementation!r}, which "
            f"has no other, got {jnp.dtype(dtype)}"
        )
