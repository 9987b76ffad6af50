r"""An LSTM layer by loops in C++, on a CPU: `implementation='native'`.

XLA runs a layer's step as a dozen small programs, lays out the weights anew for each
product, and sends gates and states through memory in between. Here a whole layer is
one call (`flax_lstm/native`): weights are laid out once, gates are computed on the
product's sums before they leave the registers, and rows of a batch, or units of few
rows, are spread over all cores.

Four primitives stand for it, each with a meaning in JAX's own operations (the fused
implementation's), from which everything comes that the loops have no part in:

- `forward`, `forward_keeping` and `backward` are the loops. What they are under vmap,
  and the derivatives of the latter two, are those of their meaning.
- The derivative of `forward` is `tangents` of what `forward_keeping` keeps.
- `tangents`, the linear map from tangents to tangents, is always its meaning, but its
  transpose is `backward`. So reverse mode runs in the loops, and forward mode, second
  derivatives and vmap work as with the fused implementation.

A loop is called where a program is lowered for a CPU and runs on one device or inside
`jax.shard_map` over all of a mesh's axes. For another platform, in a program that XLA
itself spreads over devices, and in one that `jax.export` writes for machines that have
no such loops, the meaning is compiled in its place: the fused implementation.

It is float32 without projection, of known sizes. The equations are those of
`flax_lstm/_fused_lstm.py`.

Source: https://docs.jax.dev/en/latest/ffi.html
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.extend.core
import jax.numpy as jnp
from jax.interpreters import ad, batching, mlir
from jax.interpreters.xla import apply_primitive

from flax_lstm import _fused_lstm as fused, _persistent_lstm as persistent
from flax_lstm._fused_lstm import Carry, Kept, Weights
from flax_lstm._recurrence import scan_over_time, with_varying_axes_of
from flax_lstm.native import library
from flax_lstm.native.cores import usable_cores

_GATES = ("i", "f", "g", "o")
_KEPT = 5
# Arguments of `_tangents` that it is not linear in: x, kernels, h_0, y and what is
# kept; and those that it is, less x.
_KNOWN = 1 + 2 * len(_GATES) + 2 + _KEPT
_LINEAR = 3 * len(_GATES) + 2
# Those that `_backward` is linear in: the gradients of y, h_n and c_n.
_GRADIENTS = 3
# Of native/backward.h, with native/vectors.h's kRows, which is this at most.
_MOST_ROWS_A_TILE = 6
_ROWS_A_CHUNK = 128


def run_native_over_time(
    cell: Any,
    carry: Carry,
    inputs: jax.Array,
    *,
    valid: jax.Array | None,
    reverse: bool,
) -> tuple[Carry, jax.Array]:
    """As `scan_over_time`, for an `LSTMCell` with its usual gate functions."""
    if cell.is_initializing():
        return scan_over_time(cell, carry, inputs, valid=valid, reverse=reverse)
    if inputs.dtype != jnp.float32:
        raise ValueError(
            f"dtype: expected float32 with implementation='native', which has no "
            f"other, got {inputs.dtype}"
        )
    if not _is_known(inputs.shape):
        raise ValueError(
            f"input: expected known sizes with implementation='native', got the "
            f"symbolic {inputs.shape}"
        )
    _require_loops()
    weights = fused.weights_of(cell)
    bias = weights.b or (jnp.zeros_like(weights.h[0][0]),) * len(_GATES)
    c_0, h_0 = carry
    arrays = (inputs, *weights.x, *weights.h, *bias, h_0, c_0)
    arrays += () if valid is None else (valid,)
    y, h_n, c_n = forward_p.bind(*_varying_alike(arrays), reverse=reverse)
    return (c_n, h_n), y


def run_native_or_fused_over_time(
    cell: Any,
    carry: Carry,
    inputs: jax.Array,
    *,
    valid: jax.Array | None,
    reverse: bool,
) -> tuple[Carry, jax.Array]:
    """`implementation='auto'`: the loops where they are compiled and can serve."""
    serves = (
        inputs.dtype == jnp.float32 and not cell.proj_size and _is_known(inputs.shape)
    )
    run = fused.fuse_over_time
    if serves and library.CPU.is_usable():
        run = run_native_over_time
    return run(cell, carry, inputs, valid=valid, reverse=reverse)


def _require_loops() -> None:
    """Raises a ValueError where no kind of device has loops."""
    if not library.GPU.is_usable():
        library.CPU.register()


def _is_known(shape: tuple[Any, ...]) -> bool:
    return all(isinstance(size, int) for size in shape)


def _varying_alike(arrays: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
    return with_varying_axes_of(arrays, ())


# What the loops mean. Arguments and results are in the order of native/lstm.cc; of
# weights there is one for each gate, and `valid` comes last and may be missing.


def _forward_keeping(x, *others, reverse):
    weights, (h_0, c_0, *valid) = _weights(others, biased=True)
    (c_n, h_n), y, kept = fused.forward(
        reverse, weights, x, _given(valid), (c_0, h_0), keep=True
    )
    return y, h_n, c_n, *kept[:-1]


def _forward(x, *others, reverse):
    weights, (h_0, c_0, *valid) = _weights(others, biased=True)
    (c_n, h_n), y = fused.lstm(reverse, weights, x, _given(valid), (c_0, h_0))
    return y, h_n, c_n


def _tangents(x, *others, reverse, needs_x):
    """Of `_forward`'s results; linear in all behind `_KNOWN` arguments but `valid`."""
    weights, others = _weights(others, biased=False)
    h_0, y, *kept = others[: 2 + _KEPT]
    others = others[2 + _KEPT :]
    d_x, others = others[:needs_x], others[needs_x:]
    d_weights, (d_h_0, d_c_0, *valid) = _weights(others, biased=True)
    valid = _given(valid)
    h_before = fused.shifted(reverse, valid, h_0, y)
    d_z = fused.product_over_steps(x, jnp.concatenate(d_weights.x, axis=-1))
    d_z += fused.product_over_steps(h_before, jnp.concatenate(d_weights.h, axis=-1))
    d_z += jnp.concatenate(d_weights.b)
    if needs_x:
        d_z += d_x[0] @ jnp.concatenate(weights.x, axis=-1)
    d_carry, d_y = fused.linear_scan(
        reverse, weights, valid, Kept(*kept, m=None), d_z, None, (d_c_0, d_h_0)
    )
    d_c_n, d_h_n = d_carry
    return d_y, d_h_n, d_c_n


def _backward(*arguments, reverse, needs_x):
    """The transpose of `_tangents`."""
    known, (d_y, d_h_n, d_c_n, *valid) = arguments[:_KNOWN], arguments[_KNOWN:]
    x, *others = known
    weights, (h_0, *_) = _weights(others, biased=False)

    def tangents(*linear):
        return _tangents(*known, *linear, *valid, reverse=reverse, needs_x=needs_x)

    of_bias = [kernel[0] for kernel in weights.h]
    of = (*[x][:needs_x], *weights.x, *weights.h, *of_bias, h_0, d_c_n)
    return jax.linear_transpose(tangents, *of)((d_y, d_h_n, d_c_n))


def _weights(arrays, biased: bool) -> tuple[Weights, Any]:
    """The weights that `arrays` begins with, and the rest."""
    gates = len(_GATES)
    x, h, b = (tuple(arrays[n * gates : (n + 1) * gates]) for n in range(3))
    weights = Weights(x, h, b if biased else None, projection=None)
    return weights, arrays[(2 + biased) * gates :]


def _given(valid):
    return valid[0] if valid else None


# The primitives.


def _primitive(name: str, meaning: Callable[..., Any]) -> jax.extend.core.Primitive:
    """With all that follows from what it means."""
    primitive = jax.extend.core.Primitive(name)
    primitive.multiple_results = True

    @functools.cache
    def results(*arguments, **params):
        meant = functools.partial(meaning, **params)
        return jax.make_jaxpr(meant)(*arguments).out_avals

    def derivative(primals, tangents, **params):
        meant = functools.partial(meaning, **params)
        tangents = map(ad.instantiate_zeros, tangents)
        return jax.jvp(meant, primals, tuple(tangents))

    def batched(arguments, axes, **params):
        meant = functools.partial(meaning, **params)
        outputs = jax.vmap(meant, in_axes=tuple(axes))(*arguments)
        return outputs, (0,) * len(outputs)

    primitive.def_impl(functools.partial(apply_primitive, primitive))
    primitive.def_abstract_eval(lambda *avals, **params: results(*avals, **params))
    ad.primitive_jvps[primitive] = derivative
    batching.primitive_batchers[primitive] = batched
    mlir.register_lowering(primitive, mlir.lower_fun(meaning, multiple_results=True))
    return primitive


def _lower_to_loop(primitive, meaning, target: str, scratch_size=None) -> None:
    """Has `primitive` call a loop where one can be called.

    A loop with scratch has it as its last result: among XLA's own buffers it is
    shared with whatever else needs memory at another time.
    """
    meant = mlir.lower_fun(meaning, multiple_results=True)
    called = jax.ffi.ffi_lowering(target)

    def lower(context, *arguments, **params):
        devices = _devices_with_loops(context.module_context)
        if devices is None:
            return meant(context, *arguments, **params)
        library.CPU.register()
        threads = max(1, usable_cores() // devices)
        if scratch_size is None:
            return called(context, *arguments, threads=threads, **params)
        scratch = jax.core.ShapedArray((scratch_size(*context.avals_in),), jnp.float32)
        context = context.replace(avals_out=[*context.avals_out, scratch])
        return called(context, *arguments, threads=threads, **params)[:-1]

    mlir.register_lowering(primitive, lower, platform="cpu")


def _lower_to_kernel(primitive, meaning, call, platform="cuda") -> None:
    """Has `primitive` call a GPU's kernel where it can serve."""
    meant = mlir.lower_fun(meaning, multiple_results=True)

    def lower(context, *arguments, **params):
        has_devices = _devices_with_loops(context.module_context) is not None
        chosen = call if has_devices and persistent.can_serve(context) else meant
        return chosen(context, *arguments, **params)

    mlir.register_lowering(primitive, lower, platform=platform)


def _devices_with_loops(module: mlir.ModuleContext) -> int | None:
    """How many devices of this process a program runs on; None if it can't call.

    It can where each device has its own part of the data and runs it as it stands: on
    one device, or inside `jax.shard_map` over all axes of a mesh.
    """
    if module.lowering_parameters.for_export:
        return None
    axes = module.axis_context
    if isinstance(axes, mlir.ShardingContext):
        return 1 if axes.num_devices == 1 else None
    is_manual = isinstance(axes, mlir.SPMDAxisContext)
    if is_manual and axes.manual_axes == frozenset(axes.mesh.axis_names):
        if isinstance(axes.mesh, jax.sharding.Mesh):
            return max(1, len(axes.mesh.local_devices))
        return max(1, axes.mesh.size // jax.process_count())
    return None


def _scratch_size(x: Any, kernel: Any, *_: Any) -> int:
    """An upper bound of what `Backward::scratch_size` asks for."""
    steps, batch, inputs = x.shape
    units = kernel.shape[-1]
    rows, most_inputs = steps * batch, inputs + units + _MOST_ROWS_A_TILE
    return rows * len(_GATES) * units + (rows + _ROWS_A_CHUNK) * most_inputs


forward_p = _primitive("flax_lstm_forward", _forward)
forward_keeping_p = _primitive("flax_lstm_forward_keeping", _forward_keeping)
backward_p = _primitive("flax_lstm_backward", _backward)
tangents_p = _primitive("flax_lstm_tangents", _tangents)

_lower_to_loop(forward_p, _forward, "flax_lstm_forward")
_lower_to_loop(forward_keeping_p, _forward_keeping, "flax_lstm_forward_keeping")
_lower_to_loop(backward_p, _backward, "flax_lstm_backward", _scratch_size)
_lower_to_kernel(
    forward_p, _forward, persistent.forward_lowering("flax_lstm_persistent_forward")
)
_lower_to_kernel(
    forward_keeping_p,
    _forward_keeping,
    persistent.forward_lowering("flax_lstm_persistent_forward_keeping"),
)
_lower_to_kernel(
    backward_p, _backward, persistent.backward_lowering("flax_lstm_persistent_backward")
)


def _derivative_of_forward(primals, tangents, *, reverse):
    y, h_n, c_n, *kept = forward_keeping_p.bind(*primals, reverse=reverse)
    x, *others = primals
    kernels, h_0 = others[: 2 * len(_GATES)], others[3 * len(_GATES)]
    valid = primals[1 + _LINEAR :]
    needs_x = not isinstance(tangents[0], ad.Zero)
    linear = tangents[not needs_x : 1 + _LINEAR]
    linear = [ad.instantiate_zeros(tangent) for tangent in linear]
    operands = (x, *kernels, h_0, y, *kept, *linear, *valid)
    d_results = tangents_p.bind(
        *_varying_alike(operands), reverse=reverse, needs_x=needs_x
    )
    return [y, h_n, c_n], d_results


def _transpose_of_tangents(gradients, *operands, reverse, needs_x):
    end = _KNOWN + needs_x + _LINEAR
    known, linear, valid = operands[:_KNOWN], operands[_KNOWN:end], operands[end:]
    gradients = map(ad.instantiate_zeros, gradients)
    transposed = backward_p.bind(
        *_varying_alike((*known, *gradients, *valid)), reverse=reverse, needs_x=needs_x
    )
    # A tangent that is known is zero, and nobody asks for its gradient.
    asked = [
        gradient if ad.is_undefined_primal(operand) else None
        for operand, gradient in zip(linear, transposed, strict=True)
    ]
    return [*([None] * _KNOWN), *asked, *([None] * len(valid))]


def _transpose_of_backward(tangents, *operands, reverse, needs_x):
    known, gradients = operands[:_KNOWN], operands[_KNOWN : _KNOWN + _GRADIENTS]
    valid = operands[_KNOWN + _GRADIENTS :]

    def backward(*gradients):
        return _backward(*known, *gradients, *valid, reverse=reverse, needs_x=needs_x)

    shapes = [gradient.aval for gradient in gradients]
    transposed = jax.linear_transpose(backward, *shapes)(
        tuple(map(ad.instantiate_zeros, tangents))
    )
    return [*([None] * _KNOWN), *transposed, *([None] * len(valid))]


ad.primitive_jvps[forward_p] = _derivative_of_forward
ad.primitive_transposes[tangents_p] = _transpose_of_tangents
ad.primitive_transposes[backward_p] = _transpose_of_backward
