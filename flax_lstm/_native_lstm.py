r"""An LSTM layer as compiled loops: `implementation='native'`.

XLA runs a layer's step as a dozen small kernels, packs the weights anew for each
product, and writes gates and states to memory in between. Here a whole layer is one
call (`flax_lstm/native`). On a CPU, weights are packed once, gates are computed from
the product's sums before those leave the registers, and the rows of a batch (or, if
there are few rows, the units) are spread over all cores. On an NVIDIA GPU, once its
kernels are compiled and for up to 128 units (64 where the compute capability is neither
9 nor 10), the recurrent weights stay on the chip (`_persistent_lstm`).

Each loop has a reference implementation in JAX operations, taken from the fused one,
which provides derivatives of every kind, vmap and other platforms
(`_native_primitives`).

It is for float32 and without projection; with symbolic sizes, which only exported
functions have, the fused one runs instead. The equations are those of
`flax_lstm/_fused_lstm.py`.

Source: https://docs.jax.dev/en/latest/ffi.html
"""

from typing import Any

import jax
import jax.numpy as jnp

from flax_lstm import (
    _fused_lstm as fused,
    _native_primitives as primitives,
    _validation as check,
)
from flax_lstm._compiled_once import cacheable
from flax_lstm._fused_lstm import Carry
from flax_lstm._lstm_weights import (
    Weights,
    creates_params,
    has_own_step,
    require_known_step,
    weights_of,
)
from flax_lstm._native_operands import NUM_GATES, Layer, flat
from flax_lstm._native_reference import LayerOptions
from flax_lstm._recurrence import scan_over_time
from flax_lstm._reference_primitive import varying_alike
from flax_lstm.native import library

# At or below this many rows times steps, packing weights costs more than it saves.
_FEW_ROWS = 4


@cacheable(depends_on=lambda cells: (library.GPU.is_usable(), library.CPU.is_usable()))
def run_native_over_time(
    cell: Any,
    carry: Carry,
    inputs: jax.Array,
    *,
    valid: jax.Array | None,
    reverse: bool,
) -> tuple[Carry, jax.Array]:
    """A `Recurrence` for an `LSTMCell`."""
    require_known_step(cell, "native")
    check.require_float32(inputs.dtype, "native")
    creates = cell.is_initializing() or creates_params(cell)
    # Symbolic sizes are those of an exported function, which can't call the loops.
    if creates or not has_static_sizes(inputs.shape):
        return fused.run_fused_over_time(
            cell, carry, inputs, valid=valid, reverse=reverse
        )
    if not library.GPU.is_usable():
        library.CPU.register()
    return _run(cell, carry, inputs, valid, reverse, on_gpu=True)


@cacheable(depends_on=lambda cells: library.CPU.is_usable())
def run_native_or_fused_over_time(
    cell: Any,
    carry: Carry,
    inputs: jax.Array,
    *,
    valid: jax.Array | None,
    reverse: bool,
) -> tuple[Carry, jax.Array]:
    """`implementation='auto'`: the CPU loops where they are compiled and serve best."""
    if has_own_step(cell):
        return scan_over_time(cell, carry, inputs, valid=valid, reverse=reverse)
    serves = (
        inputs.dtype == jnp.float32
        and not cell.proj_size
        and has_static_sizes(inputs.shape)
        and not is_short(inputs.shape)
    )
    if creates_params(cell) or not serves or not library.CPU.is_usable():
        return fused.run_fused_over_time(
            cell, carry, inputs, valid=valid, reverse=reverse
        )
    return _run(cell, carry, inputs, valid, reverse, on_gpu=False)


def _run(cell, carry, inputs, valid, reverse, on_gpu):
    weights = weights_of(cell, inputs.shape[-1])
    bias = weights.b or (jnp.zeros_like(weights.h[0][0]),) * NUM_GATES
    weights = weights._replace(b=bias)
    return run_layer("lstm", weights, carry, inputs, valid, reverse, on_gpu)


def run_layer(
    cell: str,
    weights: Weights,
    carry: Carry,
    inputs: jax.Array,
    valid: jax.Array | None,
    reverse: bool,
    on_gpu: bool,
) -> tuple[Carry, jax.Array]:
    """The carry after the last step and the outputs, of a layer with known weights."""
    c_0, h_0 = carry
    # A user's cell may leave them in another dtype than the layer computes in.
    weights = jax.tree.map(lambda array: array.astype(inputs.dtype), weights)
    layer = Layer(inputs, weights, h_0, c_0)
    arrays = varying_alike(tuple(flat(layer, valid)))
    precision = jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]
    options = LayerOptions(cell, reverse, on_gpu, precision)
    y, h_n, c_n = primitives.forward_p.bind(*arrays, options=options)
    return (c_n, h_n), y


def has_static_sizes(shape: tuple[Any, ...]) -> bool:
    return all(isinstance(size, int) for size in shape)


def is_short(shape: tuple[int, ...]) -> bool:
    """Whether a call, such as a decoder's of one step, is too small for the loops."""
    steps, batch, _ = shape
    return steps == 1 or steps * batch <= _FEW_ROWS
