"""The native loops' reference implementation, built from parts of the fused one.

What differs of a GRU is in `_gru_layer`.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from flax_lstm import (
    _fused_lstm as fused,
    _gru_layer as gru,
    _native_operands as operands,
)
from flax_lstm._native_operands import Layer, flat
from flax_lstm._reference_primitive import Reference


@dataclasses.dataclass(frozen=True)
class LayerOptions:
    """What is fixed when a layer is traced.

    Attributes:
        cell: "lstm" or "gru".
        reverse: whether to run from the last step to the first.
        on_gpu: whether a GPU's kernels may be called.
        precision: `jax_default_matmul_precision` at that time. The reference may be
            traced later, when the setting has changed.
    """

    cell: str
    reverse: bool
    on_gpu: bool
    precision: str | None


def as_precise(reference: Reference) -> Reference:
    """`reference` with the matmul precision at which its layer was traced."""

    @functools.wraps(reference)
    def run(*arrays, options, **params):
        with jax.default_matmul_precision(options.precision):
            return reference(*arrays, options=options, **params)

    return run


@as_precise
def forward(*arrays, options):
    """y, h_n, c_n of `operands.of_forward`."""
    layer, valid = operands.of_forward(arrays)
    carry = layer.c_0, layer.h_0
    arguments = options.reverse, layer.weights, layer.x, valid, carry
    if options.cell == "gru":
        (c_n, h_n), y, _ = gru.forward(*arguments)
    else:
        (c_n, h_n), y = fused.jitted_lstm_layer(*arguments)
    return y, h_n, c_n


@as_precise
def forward_keeping(*arrays, options):
    """As `forward`, followed by the five arrays of `Kept` without m."""
    layer, valid = operands.of_forward(arrays)
    carry = layer.c_0, layer.h_0
    arguments = options.reverse, layer.weights, layer.x, valid, carry
    if options.cell == "gru":
        (c_n, h_n), y, kept = gru.forward(*arguments)
    else:
        (c_n, h_n), y, kept = fused.forward(*arguments, keep=True)
    return y, h_n, c_n, *flat(kept)


@as_precise
def tangents(*arrays, options, needs_x):
    """The tangents of `forward`'s results, linear in those of its arguments."""
    run, d, valid = operands.of_tangents(arrays, needs_x)
    h_before = fused.shifted(options.reverse, valid, run.h_0, run.y)
    d_x, d_h, d_b = (jnp.concatenate(d_gates, axis=-1) for d_gates in d.weights[:3])
    # Where XLA divides the rows of a batch, it would gather them to join them to steps.
    product = jnp.matmul if options.cell == "gru" else fused.product_over_steps
    d_z = product(run.x, d_x) + product(h_before, d_h)
    d_z += fused.over_steps(d_b, d_z.shape)
    if needs_x:
        d_z += d.x @ jnp.concatenate(run.kernels.x, axis=-1)
    linear_scan = (gru if options.cell == "gru" else fused).linear_scan
    (d_c_n, d_h_n), d_y = linear_scan(
        options.reverse, run.kernels, valid, run.kept, d_z, None, (d.c_0, d.h_0)
    )
    return d_y, d_h_n, d_c_n


@as_precise
def backward(*arrays, options, needs_x):
    """The transpose of `tangents`."""
    run, gradients, valid = operands.of_backward(arrays)

    def linear_tangents(d):
        return tangents(*flat(run, d, valid), options=options, needs_x=needs_x)

    biases = tuple(kernel[0] for kernel in run.kernels.h)
    of = Layer(
        x=run.x if needs_x else None,
        weights=run.kernels._replace(b=biases),
        h_0=run.h_0,
        c_0=gradients.c_n,
    )
    return flat(jax.linear_transpose(linear_tangents, of)(tuple(gradients)))
