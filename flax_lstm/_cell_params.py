"""A cell's parameters as arrays, for implementations that do not run the cell itself.

Flax would check the parameters there: missing ones, and those of a wrong shape, raise
the same errors here.
"""

from collections.abc import Iterable
from typing import Any

import flax.core.meta
import flax.errors
import jax
import jax.numpy as jnp

# The methods that a step consists of.
_STEP = ("__call__", "_from_input", "_from_hidden", "_projection")

# Module, name and shape of a parameter.
Param = tuple[str, str, tuple[int, ...]]


def has_own_step(cell: Any, known: Any) -> bool:
    """Whether its step is not that of class `known`, or has other gate functions."""
    for name in _STEP:
        if getattr(type(cell), name, None) is not getattr(known, name, None):
            return True
    own, theirs = ((c.gate_fn, c.activation_fn) for c in (cell, known))
    return own != theirs


def require_known_step(cell: Any, known: Any, implementation: str) -> None:
    """Raises a ValueError if `implementation` would compute something else."""
    if has_own_step(cell, known):
        raise ValueError(
            f"implementation: expected 'scan' or 'auto' for a cell with a step or gate "
            f"functions of its own, got {implementation!r}"
        )


def creates_params(cell: Any, params: Iterable[Param]) -> bool:
    """Whether calling the cell creates its parameters, which nothing else can do."""
    if not cell.is_mutable_collection("params"):
        return False
    there = cell.variables.get("params", {})
    return any(name not in there.get(module, {}) for module, name, _ in params)


def arrays_of(cell: Any, params: Iterable[Param]) -> dict[tuple[str, str], jax.Array]:
    """The parameters of a bound cell by module and name, in its dtype.

    Raises:
        flax.errors.ScopeCollectionNotFound, ScopeParamNotFoundError: there are none,
            or not all.
        flax.errors.ScopeParamShapeError: one has the wrong shape, even if it could be
            broadcast.
    """
    there = flax.core.meta.unbox(cell.variables.get("params", {}))
    arrays = {}
    for module, name, shape in params:
        path = f"{cell.scope.path_text}/{module}"
        if not there:
            raise flax.errors.ScopeCollectionNotFound("params", name, path)
        if name not in there.get(module, {}):
            raise flax.errors.ScopeParamNotFoundError(name, path)
        array = there[module][name]
        if jnp.shape(array) != shape:
            found = jnp.shape(array)
            raise flax.errors.ScopeParamShapeError(name, path, found, shape)
        arrays[module, name] = jnp.asarray(array, cell.dtype)
    return arrays
