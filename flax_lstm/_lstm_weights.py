"""One LSTM layer's weights as arrays, from the parameters of its cell.

For implementations that do not run the cell itself, where Flax would check its
parameters: missing ones, and those of a wrong shape, raise the same errors here.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import flax.core.meta
import flax.errors
import jax
import jax.numpy as jnp

from flax_lstm._lstm_cell import LSTMCell

GATES = ("i", "f", "g", "o")


class Weights(NamedTuple):
    """One layer's weights, those of the gates in the order i, f, g, o."""

    x: tuple[jax.Array, ...]  # (I, H) each
    h: tuple[jax.Array, ...]  # (P, H) each
    b: tuple[jax.Array, ...] | None  # (H,) each
    projection: jax.Array | None  # (H, P)


def has_own_step(cell: Any) -> bool:
    """Whether its step is not `LSTMCell`'s, or has other gate functions."""
    if type(cell).__call__ is not LSTMCell.__call__:
        return True
    own, known = ((c.gate_fn, c.activation_fn) for c in (cell, LSTMCell))
    return own != known


def require_known_step(cell: Any, implementation: str) -> None:
    """Raises a ValueError if `implementation` would compute something else."""
    if has_own_step(cell):
        raise ValueError(
            f"implementation: expected 'scan' or 'auto' for a cell with a step or gate "
            f"functions of its own, got {implementation!r}"
        )


def creates_params(cell: Any) -> bool:
    """Whether calling the cell creates its parameters, which nothing else can do."""
    if not cell.is_mutable_collection("params"):
        return False
    params = cell.variables.get("params", {})
    return any(
        name not in params.get(module, {}) for module, name, _ in _params_of(cell, 0)
    )


def weights_of(cell: Any, input_size: int) -> Weights:
    """The weights of an `LSTMCell` that is bound to its parameters, in its dtype.

    Raises:
        flax.errors.ScopeCollectionNotFound, ScopeParamNotFoundError: there are none,
            or not all.
        flax.errors.ScopeParamShapeError: one has the wrong shape, even if it could be
            broadcast.
    """
    params = flax.core.meta.unbox(cell.variables.get("params", {}))
    arrays = {}
    for module, name, shape in _params_of(cell, input_size):
        path = f"{cell.scope.path_text}/{module}"
        if not params:
            raise flax.errors.ScopeCollectionNotFound("params", name, path)
        if name not in params.get(module, {}):
            raise flax.errors.ScopeParamNotFoundError(name, path)
        array = params[module][name]
        if jnp.shape(array) != shape:
            found = jnp.shape(array)
            raise flax.errors.ScopeParamShapeError(name, path, found, shape)
        arrays[module, name] = jnp.asarray(array, cell.dtype)
    return Weights(
        x=tuple(arrays[f"i{gate}", "kernel"] for gate in GATES),
        h=tuple(arrays[f"h{gate}", "kernel"] for gate in GATES),
        b=tuple(arrays[f"h{gate}", "bias"] for gate in GATES)
        if cell.use_bias
        else None,
        projection=arrays["hr", "kernel"] if cell.proj_size else None,
    )


def _params_of(
    cell: Any, input_size: int
) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    """Module, name and shape of each parameter."""
    units = cell.features
    outputs = cell.proj_size or units
    for gate in GATES:
        yield f"i{gate}", "kernel", (input_size, units)
        yield f"h{gate}", "kernel", (outputs, units)
        if cell.use_bias:
            yield f"h{gate}", "bias", (units,)
    if cell.proj_size:
        yield "hr", "kernel", (units, outputs)
