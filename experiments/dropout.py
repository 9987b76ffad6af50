"""Dropout whose masks belong to the examples, whichever device computes them."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp


def masks_by_row(rows: jax.Array) -> AbstractContextManager[None]:
    """While entered, `nn.Dropout` draws each row's mask from a key of that row.

    Flax's own draws one mask for the whole array that it sees: inside a shard_map every
    device would draw the same one, and the masks would depend on the number of devices.

    Args:
        rows: (B,) integers, the number of each row in the whole batch; the dropped
            arrays are (T, B, F).
    """

    def intercept(
        call: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        context: nn.module.InterceptorContext,
    ) -> Any:
        module = context.module
        if not isinstance(module, nn.Dropout) or kwargs["deterministic"]:
            return call(*args, **kwargs)
        (x,) = args
        steps, _, features = x.shape
        key = module.make_rng("dropout")
        kept = 1 - module.rate

        def mask_of(row):
            row_key = jax.random.fold_in(key, row)
            return jax.random.bernoulli(row_key, kept, (steps, features))

        mask = jax.vmap(mask_of, out_axes=1)(rows)
        return jnp.where(mask, x / max(kept, jnp.finfo(x.dtype).tiny), 0)

    return nn.intercept_methods(intercept)
