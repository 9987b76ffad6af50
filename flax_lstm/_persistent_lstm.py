"""The recurrence of `implementation='native'` on an NVIDIA GPU, as XLA calls it.

What depends on the previous step is one kernel per layer and direction
(`flax_lstm/native/persistent.h`); the input product before it, and the gradients of
weights and inputs after it, are XLA's products, as precise as
`jax_default_matmul_precision` says. The kernel's own products are in float32.

Tested with a CPU's threads in place of a GPU's (`tests/test_persistent.py`); not yet
run on a GPU.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.interpreters import mlir

from flax_lstm import _fused_lstm as fused, _native_operands as operands
from flax_lstm._native_operands import NUM_GATES, flat
from flax_lstm._native_reference import as_precise
from flax_lstm.native.library import GPU

# As in native/persistent_calls.h. The weights of more units than the first number need
# shared memory, of which only some GPUs give a block enough (201 KiB).
_UNITS_IN_REGISTERS, _MOST_UNITS = 64, 128
# Elements of an array, plus one step, that a 32-bit index can count.
_MOST_NUMBERS = 2**31 - 1
_WITH_MUCH_SHARED_MEMORY = ("9", "10")

Lowering = Callable[..., Sequence[Any]]


def can_serve(context: mlir.LoweringRuleContext) -> bool:
    """Whether the kernels are compiled, and support a layer of this size."""
    x: Any = context.avals_in[0]
    kernel: Any = context.avals_in[1 + NUM_GATES]
    try:
        GPU.register()
        most = most_units()
    except (ValueError, RuntimeError):  # None are compiled, or there is no GPU here.
        return False
    units = kernel.shape[-1]
    steps, batch, _ = x.shape
    numbers = (steps + 1) * batch * NUM_GATES * units
    return units <= most and numbers <= _MOST_NUMBERS


def most_units() -> int:
    """Largest hidden size that the kernels support on this machine's GPU."""
    capability, _, _ = jax.devices("gpu")[0].compute_capability.partition(".")
    has_much = capability in _WITH_MUCH_SHARED_MEMORY
    return _MOST_UNITS if has_much else _UNITS_IN_REGISTERS


def forward_lowering(target: str) -> Lowering:
    """Lowering rule of the native forward primitives to the GPU kernel `target`."""
    call = jax.ffi.ffi_lowering(target)

    def lower(context, *arguments, options):
        def parts(layer, valid):
            """Arguments of the inputs' product, and others of the kernel."""
            _, w_h, b, _ = layer.weights
            inputs = flat(layer.x, layer.weights.x)
            return inputs, flat(w_h, b, layer.h_0, layer.c_0, valid)

        inputs, others = parts(*operands.of_forward(arguments))
        input_avals, other_avals = parts(*operands.of_forward(context.avals_in))
        product = functools.partial(_inputs_product, options=options)
        (z,), (z_aval,) = _lower_part(context, product, inputs, input_avals)
        context = context.replace(avals_in=[z_aval, *other_avals])
        return call(context, z, *others, reverse=options.reverse)

    return lower


def backward_lowering(target: str) -> Lowering:
    """Lowering rule of the native backward primitive to the GPU kernel `target`."""
    call = jax.ffi.ffi_lowering(target)

    def lower(context, *arguments, options, needs_x):
        def parts(run, gradients, valid):
            """Arguments of the kernel, and of the products after it."""
            after = flat(run.x, run.kernels.x, run.h_0, run.y, valid)
            return flat(run.kernels.h, run.kept, gradients, valid), after

        of_kernel, after = parts(*operands.of_backward(arguments))
        kernel_avals, after_avals = parts(*operands.of_backward(context.avals_in))
        gate = kernel_avals[NUM_GATES]
        (d_z_aval,) = jax.make_jaxpr(_gradients_like)(gate).out_avals
        recurrent = context.replace(
            avals_in=kernel_avals, avals_out=[d_z_aval, *context.avals_out[-2:]]
        )
        d_z, d_h_0, d_c_0 = call(recurrent, *of_kernel, reverse=options.reverse)
        products = functools.partial(_gradients_after, options=options, needs_x=needs_x)
        gradients, _ = _lower_part(
            context, products, [d_z, *after], [d_z_aval, *after_avals]
        )
        return [*gradients, d_h_0, d_c_0]

    return lower


@as_precise
def _inputs_product(x, *w_x, options):
    """x·W_x of all steps, (T, B, 4·H)."""
    return (fused.product_over_steps(x, jnp.concatenate(w_x, axis=-1)),)


def _gradients_like(gate):
    """An array of the shape of all gates' gradients, (T, B, 4·H)."""
    return jnp.concatenate([gate] * NUM_GATES, axis=-1)


@as_precise
def _gradients_after(d_z, x, *others, options, needs_x):
    """Gradients of x (if `needs_x`), W_x, W_h and b, the last three gate by gate."""
    w_x, (h_0, y, *valid) = others[:NUM_GATES], others[NUM_GATES:]
    h_before = fused.shifted(options.reverse, valid[0] if valid else None, h_0, y)
    rows = d_z.reshape(-1, d_z.shape[-1])
    gradients = [
        before.reshape(-1, before.shape[-1]).T @ rows for before in (x, h_before)
    ]
    of_gates = [
        part
        for whole in (*gradients, rows.sum(0))
        for part in jnp.split(whole, NUM_GATES, axis=-1)
    ]
    of_x = [d_z @ jnp.concatenate(w_x, axis=-1).T] if needs_x else []
    return (*of_x, *of_gates)


def _lower_part(context, function, values, avals):
    """The values that `function` returns, lowered, and their avals."""
    # Without shardings: those of an explicit mesh of one device would name its axes.
    avals = [jax.core.ShapedArray(aval.shape, aval.dtype) for aval in avals]
    results = jax.make_jaxpr(function)(*avals).out_avals
    lower = mlir.lower_fun(function, multiple_results=True)
    inner = context.replace(avals_in=avals, avals_out=results)
    return lower(inner, *values), results
