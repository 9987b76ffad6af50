"""One LSTM layer's weights as arrays, from the parameters of its cell."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax

from flax_lstm import _cell_params
from flax_lstm._cell_params import Param
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
    return _cell_params.has_own_step(cell, LSTMCell)


def require_known_step(cell: Any, implementation: str) -> None:
    """Raises a ValueError if `implementation` would compute something else."""
    _cell_params.require_known_step(cell, LSTMCell, implementation)


def creates_params(cell: Any) -> bool:
    """Whether calling the cell creates its parameters, which nothing else can do."""
    return _cell_params.creates_params(cell, _params_of(cell, 0))


def weights_of(cell: Any, input_size: int) -> Weights:
    """The weights of an `LSTMCell` that is bound to its parameters, in its dtype.

    Raises:
        flax.errors.FlaxError: as `_cell_params.arrays_of`.
    """
    arrays = _cell_params.arrays_of(cell, _params_of(cell, input_size))
    return Weights(
        x=tuple(arrays[f"i{gate}", "kernel"] for gate in GATES),
        h=tuple(arrays[f"h{gate}", "kernel"] for gate in GATES),
        b=tuple(arrays[f"h{gate}", "bias"] for gate in GATES)
        if cell.use_bias
        else None,
        projection=arrays["hr", "kernel"] if cell.proj_size else None,
    )


def _params_of(cell: Any, input_size: int) -> Iterator[Param]:
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
