"""A GRU layer as compiled loops: `implementation='native'`.

They are an LSTM's (`_native_lstm`) with another step, on a CPU only. `_gru_layer` has
the equations, and what runs in their place.
"""

from typing import Any

import jax
import jax.numpy as jnp

from flax_lstm import _cell_params, _gru_layer as gru, _validation as check
from flax_lstm._compiled_once import cacheable
from flax_lstm._gru_cell import GRUCell
from flax_lstm._native_lstm import has_static_sizes, is_short, run_layer
from flax_lstm._recurrence import scan_compiled_once
from flax_lstm.native import library


@cacheable(depends_on=lambda cells: library.CPU.is_usable())
def run_native_gru_over_time(
    cell: Any,
    carry: jax.Array,
    inputs: jax.Array,
    *,
    valid: jax.Array | None,
    reverse: bool,
) -> tuple[jax.Array, jax.Array]:
    """A `Recurrence` for a `GRUCell`."""
    gru.require_known_step(cell, "native")
    check.require_float32(inputs.dtype, "native")
    creates = cell.is_initializing() or _creates_params(cell)
    # Symbolic sizes are those of an exported function, which can't call the loops.
    if creates or not has_static_sizes(inputs.shape):
        return scan_compiled_once(cell, carry, inputs, valid=valid, reverse=reverse)
    library.CPU.register()
    return _run(cell, carry, inputs, valid, reverse)


@cacheable(depends_on=lambda cells: library.CPU.is_usable())
def run_native_or_scan_over_time(
    cell: Any,
    carry: jax.Array,
    inputs: jax.Array,
    *,
    valid: jax.Array | None,
    reverse: bool,
) -> tuple[jax.Array, jax.Array]:
    """`implementation='auto'`: the CPU loops where they are compiled and serve best."""
    serves = (
        not _cell_params.has_own_step(cell, GRUCell)
        and inputs.dtype == jnp.float32
        and has_static_sizes(inputs.shape)
        and not is_short(inputs.shape)
    )
    if not serves or _creates_params(cell) or not library.CPU.is_usable():
        return scan_compiled_once(cell, carry, inputs, valid=valid, reverse=reverse)
    return _run(cell, carry, inputs, valid, reverse)


def _run(cell, carry, inputs, valid, reverse):
    weights = gru.weights_of(cell, inputs.shape[-1])
    (_, h_n), y = run_layer(
        "gru", weights, (carry, carry), inputs, valid, reverse, on_gpu=False
    )
    return h_n, y


def _creates_params(cell: Any) -> bool:
    return _cell_params.creates_params(cell, gru.params_of(cell, 0))
