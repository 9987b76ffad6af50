"""Dtypes for accumulation, and those that libraries support."""

from typing import Any

import jax.numpy as jnp
from jax.typing import DTypeLike


def at_least_float32(dtype: DTypeLike) -> DTypeLike:
    """The dtype for sums over time, and over products, of values in `dtype`."""
    # Not `promote_types`, which `jax_numpy_dtype_promotion='strict'` refuses.
    return dtype if jnp.finfo(dtype).bits >= 32 else jnp.float32


def require_float32(dtype: Any, implementation: str) -> None:
    """Raises a ValueError unless `implementation` computes in `dtype`."""
    if jnp.dtype(dtype) != jnp.float32:
        raise ValueError(
            f"dtype: expected float32 with implementation={implementation!r}, which "
            f"supports no other, got {jnp.dtype(dtype)}"
        )
