"""From users' arrays to time-major ones with a state, and back: one jit each way."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from flax_lstm._cell import State


@functools.partial(
    jax.jit, static_argnames=("batch_first", "dtype", "num_cells", "sizes", "dtypes")
)
def time_major(
    x: jax.Array,
    state: State | None,
    lengths: jax.Array | None,
    *,
    batch_first: bool,
    dtype: DTypeLike,
    num_cells: int,
    sizes: Sequence[int],
    dtypes: Sequence[DTypeLike],
) -> tuple[jax.Array, State, jax.Array | None]:
    """Input, state and validity as layers take them, time-major.

    Args:
        x: (T, B, I), (B, T, I) if batch_first, or (T, I).
        state: arrays (L·D, B, ·), (L·D, ·) with (T, I), or None for zeros.
        lengths: (B,) int32 within [0, T], or None.
        batch_first: whether the first of three axes of `x` is the batch.
        dtype: of the computation.
        num_cells: L·D, the length of a state array's first axis.
        sizes: width of each array of a state.
        dtypes: dtype of each array of a state.

    Returns:
        The input (T, B, I) in `dtype`, with zeros past a row's end; the state,
        (L·D, B, ·) each; and which steps count, (T, B) bool, or None if all do.
    """
    if x.ndim == 2:
        x = x[:, None]
        state = state and tuple(array[:, None] for array in state)
    elif batch_first:
        x = x.swapaxes(0, 1)
    valid = None
    if lengths is not None:
        valid = jnp.arange(x.shape[0], dtype=lengths.dtype)[:, None] < lengths[None, :]
        # Whatever stands in the padding (NaN too) must not reach a product:
        # 0 * NaN would come back in the gradients.
        x = jnp.where(valid[..., None], x, jnp.zeros_like(x))
    x = _sharded_by_rows_alone(x.astype(dtype))
    if state is None:
        # Sharded as the rows of `x` are: plain `jnp.zeros` would be replicated, which
        # a scan over a batch with an explicit sharding refuses as its carry.
        column = jnp.zeros_like(x[0, :, :1])
        state = tuple(
            jnp.broadcast_to(column.astype(dtype), (num_cells, column.shape[0], size))
            for size, dtype in zip(sizes, dtypes, strict=True)
        )
    else:
        state = tuple(
            _sharded_like_rows(array.astype(dtype), x)
            for array, dtype in zip(state, dtypes, strict=True)
        )
    return x, state, valid


def _sharded_by_rows_alone(x: jax.Array) -> jax.Array:
    """`x` (T, B, I) without explicit sharding of steps and features.

    A scan can't run over sharded steps, and a product with sharded features would sum
    over the devices at every step.
    """
    steps, rows, features = jax.typeof(x).sharding.spec
    if steps is None and features is None:
        return x
    return jax.sharding.reshard(x, jax.P(None, rows, None))


def _sharded_like_rows(state: jax.Array, x: jax.Array) -> jax.Array:
    """A replicated state (L·D, B, ·) with the explicit sharding of `x`'s rows."""
    _, rows, _ = jax.typeof(x).sharding.spec
    _, own_rows, width = jax.typeof(state).sharding.spec
    if rows is None or own_rows is not None:
        return state
    return jax.sharding.reshard(state, jax.P(None, rows, width))


@jax.jit
def masked(mask: jax.Array, x: jax.Array) -> jax.Array:
    """`x` where `mask` holds, and else zeros, in the explicit sharding of `x`.

    Compiled: outside of `jax.jit` the mask can take it only in a mesh's context, which
    JAX before 0.12 does not ask for.
    """
    mask = jax.sharding.reshard(mask, jax.typeof(x).sharding)
    return jnp.where(mask, x, jnp.zeros_like(x))


@functools.partial(jax.jit, static_argnames=("batch_first", "batched"))
def as_given(
    output: jax.Array, state: State, *, batch_first: bool, batched: bool
) -> tuple[jax.Array, State]:
    """The output (T, B, ·) and the final state, in the layout of the input."""
    if not batched:
        return output[:, 0], tuple(array[:, 0] for array in state)
    return output.swapaxes(0, 1) if batch_first else output, state
