"""The native loops' reference implementation, built from parts of the fused one.

Arguments and results are in the order of native/lstm.cc; weights are one array per
gate, and `valid` comes last and may be missing.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from flax_lstm import _fused_lstm as fused
from flax_lstm._fused_lstm import Kept
from flax_lstm._lstm_weights import GATES, Weights
from flax_lstm._reference_primitive import Reference

NUM_GATES = len(GATES)
KEPT = 5
# Arguments of `tangents` that it is not linear in: x, kernels, h_0, y and what is
# saved; and those that it is linear in, without x's tangent.
KNOWN = 1 + 2 * NUM_GATES + 2 + KEPT
LINEAR = 3 * NUM_GATES + 2
# Those that `backward` is linear in: the gradients of y, h_n and c_n.
GRADIENTS = 3


@dataclasses.dataclass(frozen=True)
class LayerOptions:
    """What is fixed when a layer is traced.

    Attributes:
        reverse: whether to run from the last step to the first.
        on_gpu: whether a GPU's kernels may be called.
        precision: `jax_default_matmul_precision` at that time. The reference may be
            traced later, when the setting has changed.
    """

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
def forward(x, *others, options):
    """y, h_n, c_n of x, kernels, biases, h_0, c_0."""
    weights, (h_0, c_0, *valid) = _weights(others, biased=True)
    (c_n, h_n), y = fused.jitted_lstm_layer(
        options.reverse, weights, x, _given(valid), (c_0, h_0)
    )
    return y, h_n, c_n


@as_precise
def forward_keeping(x, *others, options):
    """As `forward`, followed by the five arrays of `Kept` without m."""
    weights, (h_0, c_0, *valid) = _weights(others, biased=True)
    (c_n, h_n), y, kept = fused.forward(
        options.reverse, weights, x, _given(valid), (c_0, h_0), keep=True
    )
    return y, h_n, c_n, *kept[:-1]


@as_precise
def tangents(x, *others, options, needs_x):
    """The tangents of `forward`'s results.

    Linear in every argument after the first `KNOWN`, except `valid`.
    """
    weights, others = _weights(others, biased=False)
    h_0, y, *kept = others[: 2 + KEPT]
    others = others[2 + KEPT :]
    d_x, others = others[:needs_x], others[needs_x:]
    d_weights, (d_h_0, d_c_0, *valid) = _weights(others, biased=True)
    valid = _given(valid)
    h_before = fused.shifted(options.reverse, valid, h_0, y)
    d_z = fused.product_over_steps(x, jnp.concatenate(d_weights.x, axis=-1))
    d_z += fused.product_over_steps(h_before, jnp.concatenate(d_weights.h, axis=-1))
    d_z += fused.over_steps(jnp.concatenate(d_weights.b), d_z.shape)
    if needs_x:
        d_z += d_x[0] @ jnp.concatenate(weights.x, axis=-1)
    d_carry, d_y = fused.linear_scan(
        options.reverse, weights, valid, Kept(*kept, m=None), d_z, None, (d_c_0, d_h_0)
    )
    d_c_n, d_h_n = d_carry
    return d_y, d_h_n, d_c_n


@as_precise
def backward(*arguments, options, needs_x):
    """The transpose of `tangents`."""
    known, (d_y, d_h_n, d_c_n, *valid) = arguments[:KNOWN], arguments[KNOWN:]
    x, *others = known
    weights, (h_0, *_) = _weights(others, biased=False)

    def linear_tangents(*linear):
        return tangents(*known, *linear, *valid, options=options, needs_x=needs_x)

    of_bias = [kernel[0] for kernel in weights.h]
    of = (*[x][:needs_x], *weights.x, *weights.h, *of_bias, h_0, d_c_n)
    return jax.linear_transpose(linear_tangents, *of)((d_y, d_h_n, d_c_n))


def _weights(arrays, biased: bool) -> tuple[Weights, Any]:
    """The weights that `arrays` begins with, and the rest."""
    x, h, b = (tuple(arrays[n * NUM_GATES : (n + 1) * NUM_GATES]) for n in range(3))
    weights = Weights(x, h, b if biased else None, projection=None)
    return weights, arrays[(2 + biased) * NUM_GATES :]


def _given(valid):
    return valid[0] if valid else None
