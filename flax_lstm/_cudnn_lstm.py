r"""LSTM layers by NVIDIA's cuDNN: `implementation='cudnn'`.

Through `jax.experimental.rnn`, which has cuDNN's calls without a way around their
edges; here is what stands around them:

- Parameters are the stack's own. cuDNN takes them as one vector, first the products'
  of all layers and directions, then two biases each, of which one is zero here.
- As many layers as have no dropout between them are one call. Dropout between layers
  is the stack's own, so that its masks are those of every other implementation.
- A row of length 0, for which cuDNN's call fails, counts one step there, and has its
  initial state and zeros put in place of what comes back.
- Products are in float32 or in TF32, as `jax_default_matmul_precision` says; what
  cuDNN has no equal to is refused.
- What it can't do is an error that says so: other dtypes than float32, a projection,
  sizes that are not known, vmap, a machine without an NVIDIA GPU. Its derivative is a
  `jax.custom_vjp`: reverse mode, once; JAX itself refuses forward mode.

Its calls copy the lengths to the host and wait for them (JAX 0.10.2), so that nothing
behind a call can be handed to the device before it.

Source: https://docs.nvidia.com/deeplearning/cudnn/latest/api/cudnn-adv-library.html
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.core.meta
import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap
from jax.experimental import rnn

from flax_lstm._layers import layer_by_layer
from flax_lstm._recurrence import scan_over_time, with_varying_axes_of

_GATES = ("i", "f", "g", "o")
# Of `jax_default_matmul_precision`. Unset, XLA's own products of float32 on an NVIDIA
# GPU are in TF32 too, where it has it.
_IN_TF32 = (None, "default", "high", "tensorfloat32", "TF32_TF32_F32")
_IN_FLOAT32 = ("highest", "float32", "F32_F32_F32")

State = tuple[jax.Array, jax.Array]


class Sizes(NamedTuple):
    """What cuDNN is told beside arrays, in the order of `jax.experimental.rnn`."""

    input_size: int
    hidden_size: int
    num_layers: int
    dropout: float
    bidirectional: bool
    precision: jax.lax.Precision


def run_layers_by_cudnn(
    layers: Sequence[Sequence[Any]],
    state: State,
    inputs: jax.Array,
    *,
    valid: jax.Array | None,
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    """As what `layer_by_layer` makes, for layers of `LSTMCell`."""
    first = layers[0][0]
    if first.is_initializing():
        run = layer_by_layer(scan_over_time)
        return run(layers, state, inputs, valid=valid)
    steps, batch, features = _known_shape(inputs)
    _require_float32(inputs.dtype)
    _require_gpu()
    sizes = Sizes(
        input_size=features,
        hidden_size=first.features,
        num_layers=len(layers),
        dropout=0.0,
        bidirectional=len(layers[0]) > 1,
        precision=_precision(),
    )
    weights = _joined_weights(layers)
    if valid is None:
        lengths = jnp.full(batch, steps, jnp.int32)
    else:
        lengths = valid.sum(0, dtype=jnp.int32)
    x = inputs.swapaxes(0, 1)
    x, weights, state, lengths = with_varying_axes_of(
        (x, weights, state, lengths), None
    )
    h_0, c_0 = state
    y, h_n, c_n = _lstm(sizes, x, h_0, c_0, weights, jnp.maximum(lengths, 1))
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


def _require_float32(dtype: Any) -> None:
    if dtype != jnp.float32:
        raise ValueError(
            f"dtype: expected float32 with implementation='cudnn', which has no other, "
            f"got {dtype}"
        )


def _require_gpu() -> None:
    try:
        jax.devices("cuda")
    except RuntimeError as error:
        here = ", ".join(sorted({device.platform for device in jax.devices()}))
        raise ValueError(
            f"implementation: expected one that runs here, got 'cudnn', which needs an "
            f"NVIDIA GPU; JAX has {here}"
        ) from error


def _precision() -> jax.lax.Precision:
    # `values` has what holds everywhere, not what a `with` says.
    chosen = jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]
    if chosen in _IN_FLOAT32:
        return jax.lax.Precision.HIGHEST
    if chosen in _IN_TF32:
        return jax.lax.Precision.HIGH
    raise ValueError(
        f"jax_default_matmul_precision: expected float32 or tensorfloat32 (or one of "
        f"their other names) with implementation='cudnn', got {chosen!r}"
    )


def _joined_weights(layers: Sequence[Sequence[Any]]) -> jax.Array:
    """All kernels as cuDNN has them, (4·H, I) and (4·H, H), then all biases."""
    kernels, biases = [], []
    for cell in (cell for directions in layers for cell in directions):
        params = flax.core.meta.unbox(cell.variables["params"])
        params = jax.tree.map(jnp.float32, params)
        for source in ("i", "h"):
            kernels += [params[f"{source}{gate}"]["kernel"].T for gate in _GATES]
        none = jnp.zeros(4 * cell.features, jnp.float32)
        biases.append(none)
        if cell.use_bias:
            biases += [params[f"h{gate}"]["bias"] for gate in _GATES]
        else:
            biases.append(none)
    return jnp.concatenate([array.ravel() for array in (*kernels, *biases)])


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _lstm(
    sizes: Sizes,
    x: jax.Array,
    h_0: jax.Array,
    c_0: jax.Array,
    weights: jax.Array,
    lengths: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Outputs (B, T, D·H) and final states (L·D, B, H) of x (B, T, I)."""
    results, _ = _forward(sizes, x, h_0, c_0, weights, lengths)
    return results


def _forward(sizes, *arrays):
    call = _unbatched(functools.partial(rnn.lstm_fwd, **sizes._asdict()))
    # cuDNN's outputs come without the mesh axes that they vary over.
    return with_varying_axes_of(call(*arrays), arrays)


def _backward(sizes, residuals, gradients):
    call = _unbatched(functools.partial(rnn.lstm_bwd, *sizes))
    *of_floats, _ = call(residuals, gradients)
    of_floats = with_varying_axes_of(tuple(of_floats), residuals)
    return *of_floats, None  # Lengths have no derivative.


_lstm.defvjp(_forward, _backward)


def _unbatched(call: Callable[..., Any]) -> Callable[..., Any]:
    """`call`, with an error that says so under `jax.vmap`."""
    wrapped = custom_vmap(call)

    @wrapped.def_vmap
    def refuse(axis_size, in_batched, *args):
        del axis_size, in_batched, args
        raise NotImplementedError(
            "implementation: 'cudnn' can't run under jax.vmap; expected 'fused' or "
            "'scan' there"
        )

    return wrapped
