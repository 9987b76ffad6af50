r"""LSTM layers by NVIDIA's cuDNN: `implementation='cudnn'`.

This uses `jax.experimental.rnn`, which exposes cuDNN's calls with all their
limitations; what this file adds:

- Parameters are the stack's own; cuDNN takes them as one vector (`_cudnn_weights`).
- Consecutive layers without dropout between them are one call. Dropout between layers
  is applied by the stack, so that its masks are those of every other implementation.
- A row of length 0, for which cuDNN's call fails, is passed with length 1, and its
  results are replaced by its initial state and zeros.
- Products are in float32 or in TF32, as `jax_default_matmul_precision` says; precisions
  that cuDNN does not offer are refused.
- Derivatives of every kind, vmap and more work (`_cudnn_primitives`): reverse mode in
  cuDNN, the others as with the fused implementation.
- What it can't do raises an error that says so: dtypes other than float32, a
  projection, symbolic sizes, a machine without an NVIDIA GPU.

Its calls copy the lengths to the host and wait for them (JAX 0.10.2), so nothing that
follows a call can be enqueued on the device until then.

Source: https://docs.nvidia.com/deeplearning/cudnn/latest/api/cudnn-adv-library.html
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from flax_lstm import _validation as check
from flax_lstm._cell import State
from flax_lstm._compiled_once import cacheable
from flax_lstm._cudnn_primitives import forward_p
from flax_lstm._cudnn_weights import CudnnOptions, join
from flax_lstm._fused_lstm import run_fused_over_time
from flax_lstm._layers import layer_by_layer
from flax_lstm._lstm_weights import creates_params, require_known_step, weights_of
from flax_lstm._reference_primitive import varying_alike

# Values of `jax_default_matmul_precision`. If it is unset, XLA's own float32 products
# are in TF32, too, on NVIDIA GPUs that have it.
_IN_TF32 = (None, "default", "high", "tensorfloat32", "TF32_TF32_F32")
_IN_FLOAT32 = ("highest", "float32", "F32_F32_F32")


@cacheable()
def run_layers_by_cudnn(
    layers: Sequence[Sequence[Any]],
    state: State,
    inputs: jax.Array,
    *,
    valid: jax.Array | None,
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    """A `StackRecurrence` for layers of `LSTMCell`: one call of cuDNN."""
    for cells in layers:
        for cell in cells:
            require_known_step(cell, "cudnn")
    if any(creates_params(cell) for cells in layers for cell in cells):
        return layer_by_layer(run_fused_over_time)(layers, state, inputs, valid=valid)
    first = layers[0][0]
    steps, batch, features = _known_shape(inputs)
    check.require_float32(inputs.dtype, "cudnn")
    _require_gpu()
    if batch == 0:  # cuDNN can't describe an empty batch.
        return layer_by_layer(run_fused_over_time)(layers, state, inputs, valid=valid)
    options = CudnnOptions(
        input_size=features,
        hidden_size=first.features,
        num_layers=len(layers),
        dropout=0.0,
        bidirectional=len(layers[0]) > 1,
        precision=_precision(),
    )
    weights = join(
        [
            weights_of(cell, options.width(layer))
            for layer, cells in enumerate(layers)
            for cell in cells
        ]
    )
    if valid is None:
        lengths = jnp.full(batch, steps, jnp.int32)
    else:
        lengths = valid.sum(0, dtype=jnp.int32)
    h_0, c_0 = state
    counted = jnp.maximum(lengths, 1)
    arrays = varying_alike((inputs.swapaxes(0, 1), h_0, c_0, weights, counted))
    y, h_n, c_n = forward_p.bind(*arrays, options=options)
    y = y.swapaxes(0, 1)
    if valid is None:
        return y, (h_n, c_n)
    y = jnp.where(valid[..., None], y, jnp.zeros_like(y))
    empty = (lengths == 0)[:, None]
    return y, (jnp.where(empty, h_0, h_n), jnp.where(empty, c_0, c_n))


def _known_shape(inputs: jax.Array) -> tuple[int, ...]:
    if not all(isinstance(size, int) for size in inputs.shape):
        raise ValueError(
            f"input: expected known sizes with implementation='cudnn', got the "
            f"symbolic {inputs.shape}"
        )
    return inputs.shape


def _require_gpu() -> None:
    try:
        jax.devices("cuda")
    except RuntimeError as error:
        here = ", ".join(sorted({device.platform for device in jax.devices()}))
        raise ValueError(
            f"implementation: expected one that runs here, got 'cudnn', which needs an "
            f"NVIDIA GPU; JAX has {here} only"
        ) from error


def _precision() -> jax.lax.Precision:
    # `jax.config.values` has the global setting, not that of a `with` block.
    chosen = jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]
    if chosen in _IN_FLOAT32:
        return jax.lax.Precision.HIGHEST
    if chosen in _IN_TF32:
        return jax.lax.Precision.HIGH
    raise ValueError(
        f"jax_default_matmul_precision: expected float32 or tensorfloat32 (or one of "
        f"their other names) with implementation='cudnn', got {chosen!r}"
    )
