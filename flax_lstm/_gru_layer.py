r"""A GRU layer as the native loops see it: with an LSTM's operands.

`Weights` and `Kept` are an LSTM's, of which a GRU has four gates, too: r, z, and the
two parts of n, that from the input and that from the hidden state, which r multiplies
(each has a bias). What is zero of their kernels is not read: the input kernel of the
last and the hidden kernel of the third. Its c is h.

.. math::
    a_k &= x_t W_{ik} + h_{t-1} W_{hk} + b_k, \quad k = r, z, n, m \\
    r &= σ(a_r), \quad z = σ(a_z), \quad n = \tanh(a_n + r ∘ a_m) \\
    h_t &= (1 - z) ∘ n + z ∘ h_{t-1}

The functions are those of `_fused_lstm` that have the same names.
"""

import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from flax_lstm import _cell_params
from flax_lstm._cell_params import Param
from flax_lstm._fused_lstm import Carry, Kept
from flax_lstm._gru_cell import GRUCell
from flax_lstm._lstm_weights import Weights
from flax_lstm._recurrence import with_varying_axes_of

# Of a, those that are products of x, and of h.
_OF_X, _OF_H = (0, 1, 2), (0, 1, 3)


def weights_of(cell: Any, input_size: int) -> Weights:
    """The weights of a `GRUCell` that is bound to its parameters.

    Raises:
        flax.errors.FlaxError: as `_cell_params.arrays_of`.
    """
    arrays = _cell_params.arrays_of(cell, params_of(cell, input_size))
    x = [arrays[f"i{gate}", "kernel"] for gate in "rzn"]
    h = [arrays[f"h{gate}", "kernel"] for gate in "rzn"]
    no_bias = jnp.zeros_like(h[0][0])
    biases = [arrays.get((f"i{gate}", "bias"), no_bias) for gate in "rzn"]
    return Weights(
        x=(*x, jnp.zeros_like(x[0])),
        h=(h[0], h[1], jnp.zeros_like(h[0]), h[2]),
        b=(*biases, arrays.get(("hn", "bias"), no_bias)),
        projection=None,
    )


def params_of(cell: Any, input_size: int) -> Iterator[Param]:
    """Module, name and shape of each parameter of a `GRUCell`."""
    units = cell.features
    for gate in "rzn":
        yield f"i{gate}", "kernel", (input_size, units)
        yield f"h{gate}", "kernel", (units, units)
        if cell.use_bias:
            yield f"i{gate}", "bias", (units,)
    if cell.use_bias:
        yield "hn", "bias", (units,)


def require_known_step(cell: Any, implementation: str) -> None:
    """Raises a ValueError if `implementation` would compute something else."""
    _cell_params.require_known_step(cell, GRUCell, implementation)


def forward(
    reverse: bool,
    weights: Weights,
    x: jax.Array,
    valid: jax.Array | None,
    carry: Carry,
) -> tuple[Carry, jax.Array, Kept]:
    """The carry after the last step, the outputs, and what the derivative needs."""
    # A product for each: on a CPU, splitting one of all costs more than it saves.
    inputs = tuple(x @ weights.x[k] for k in _OF_X)
    assert weights.b is not None
    b_r, b_z, b_n, b_m = (bias[None] for bias in weights.b)

    def step(carry, inputs):
        (x_r, x_z, x_n), is_valid = inputs
        c, h = carry
        h_r, h_z, h_m = (h @ weights.h[k] for k in _OF_H)
        r = jax.nn.sigmoid(x_r + h_r + b_r)
        z = jax.nn.sigmoid(x_z + h_z + b_z)
        a_m = h_m + b_m
        n = jnp.tanh(x_n + b_n + r * a_m)
        new_h = (1 - z) * n + z * c
        kept = Kept(i=r, f=z, g=n, o=a_m, c=c, m=None)
        y, new_c = new_h, new_h
        if is_valid is not None:
            valid_row = is_valid[:, None]
            new_c = jnp.where(valid_row, new_c, c)
            new_h = jnp.where(valid_row, new_h, h)
            y = jnp.where(valid_row, y, jnp.zeros_like(y))
        return (new_c, new_h), (y, kept)

    carry, (y, kept) = jax.lax.scan(step, carry, (inputs, valid), reverse=reverse)
    return carry, y, kept


def linear_scan(reverse, weights, valid, kept, d_a, d_m, d_carry):
    """The tangents' own recurrence; linear in `d_a` (T, B, 4·H) and `d_carry`."""
    del d_m  # Of a projection.
    kernel = jnp.concatenate([weights.h[k] for k in _OF_H], axis=-1)
    d_carry = with_varying_axes_of(d_carry, (d_a, kept, kernel))

    @functools.partial(jax.checkpoint, prevent_cse=False)
    def step(d_carry, inputs):
        d_c, d_h = d_carry
        d_a, kept, is_valid = inputs
        d_r, d_z, d_n, d_m = jnp.split(d_a, len(weights.h), axis=-1)
        from_r, from_z, from_m = jnp.split(d_h @ kernel, len(_OF_H), axis=-1)
        r, z, n, a_m, h = kept.i, kept.f, kept.g, kept.o, kept.c
        d_gate_r = r * (1 - r) * (d_r + from_r)
        d_gate_z = z * (1 - z) * (d_z + from_z)
        d_gate_n = (1 - n * n) * (d_n + r * (d_m + from_m) + a_m * d_gate_r)
        new_d = (1 - z) * d_gate_n + (h - n) * d_gate_z + z * d_c
        d_y, new_d_c, new_d_h = new_d, new_d, new_d
        if is_valid is not None:
            valid_row = is_valid[:, None]
            d_y = jnp.where(valid_row, new_d, jnp.zeros_like(new_d))
            new_d_c = jnp.where(valid_row, new_d, d_c)
            new_d_h = jnp.where(valid_row, new_d, d_h)
        return (new_d_c, new_d_h), d_y

    return jax.lax.scan(step, d_carry, (d_a, kept, valid), reverse=reverse)
