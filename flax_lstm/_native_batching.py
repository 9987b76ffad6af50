"""The native loops under `jax.vmap`.

One model with mapped inputs or states is one call with more rows. For mapped weights,
such as an ensemble's, the reference is mapped, in whose products the members stand side
by side; so it is for each member's own gradient.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.extend.core
import jax.numpy as jnp
from jax.interpreters import batching

from flax_lstm._native_reference import NUM_GATES
from flax_lstm._reference_primitive import Reference, map_reference

# Of `forward`'s arguments: x, 3 · NUM_GATES weights, h_0, c_0 and perhaps valid.
_WEIGHTS = range(1, 1 + 3 * NUM_GATES)
# Results of `forward` that have no axis of time: h_n and c_n.
_FINAL = (1, 2)


def batch_forward(primitive: jax.extend.core.Primitive, reference: Reference) -> None:
    """Registers the rule for a primitive with the arguments of `forward`."""

    def batched(arguments, axes, **params):
        is_ensemble = any(axes[index] is not None for index in _WEIGHTS)
        if is_ensemble or _has_sharding(arguments):
            return map_reference(reference, arguments, axes, **params)
        return _with_more_rows(primitive, arguments, axes, params)

    batching.primitive_batchers[primitive] = batched


def _with_more_rows(primitive, arguments, axes, params):
    """The mapped axis and the rows as one axis."""
    pairs = zip(arguments, axes, strict=True)
    size = next(array.shape[axis] for array, axis in pairs if axis is not None)
    _, batch, _ = (n for at, n in enumerate(arguments[0].shape) if at != axes[0])

    def rows(index, array, axis):
        """In (T, B, ·) and (T, B) the rows are axis 1, in the states axis 0."""
        is_state = index in (_WEIGHTS.stop, _WEIGHTS.stop + 1)
        at = 0 if is_state else 1
        if axis is None:
            array = jnp.broadcast_to(
                jnp.expand_dims(array, at),
                (*array.shape[:at], size, *array.shape[at:]),
            )
        else:
            array = jnp.moveaxis(array, axis, at)
        return array.reshape(*array.shape[:at], size * batch, *array.shape[at + 2 :])

    merged = [
        array if index in _WEIGHTS else rows(index, array, axis)
        for index, (array, axis) in enumerate(zip(arguments, axes, strict=True))
    ]
    results = primitive.bind(*merged, **params)
    result_axes = [0 if index in _FINAL else 1 for index in range(len(results))]
    return [
        result.reshape(*result.shape[:at], size, batch, *result.shape[at + 1 :])
        for result, at in zip(results, result_axes, strict=True)
    ], result_axes


def _has_sharding(arguments: Sequence[Any]) -> bool:
    """Whether an explicit mesh shards any of them: axes are then left as they are."""
    return any(any(jax.typeof(array).sharding.spec) for array in arguments)
