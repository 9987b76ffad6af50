"""cuDNN's two calls as JAX's primitives, with every derivative and under vmap.

As of the native loops (`_native_primitives`), each has a reference implementation, the
fused one's, from which comes what cuDNN has no part in. The derivative of a call
forward is a linear map that is always its reference, and whose transpose is the call
backward: so reverse mode runs in cuDNN, and forward mode, second derivatives, vmap,
programs that XLA spreads over devices, and those for other platforms and for export
work as with the fused implementation.

What cuDNN keeps from a call forward for the one backward only itself can read. The
reference has no use for it, and puts NaN in its place where it stands in for a call
forward: gradients that cuDNN made of that would not look like any.
"""

import functools
from typing import Any

import jax
import jax.extend.core
import jax.numpy as jnp
from jax.experimental import rnn
from jax.experimental.layout import Layout, with_layout_constraint
from jax.interpreters import ad, mlir

from flax_lstm import _fused_lstm as fused
from flax_lstm._cudnn_weights import Sizes, split
from flax_lstm._reference_primitive import (
    Reference,
    devices_if_callable,
    primitive_with_reference,
    transpose_each_other,
    varying_alike,
)

# Arguments of the calls that are no integers: x, h_0, c_0 and weights.
_FLOATS = 4
# Arguments that the derivative is not linear in: those, lengths, y and what is kept.
_KNOWN = _FLOATS + 3
# Of y, h_n and c_n.
_GRADIENTS = 3

_NAMES = {
    jax.lax.Precision.HIGH: "tensorfloat32",
    jax.lax.Precision.HIGHEST: "highest",
}


def forward(x, h_0, c_0, weights, lengths, *, sizes: Sizes):
    """Outputs (B, T, D·H) and final states (L·D, B, H) of x (B, T, I)."""
    cells = split(weights, sizes)
    valid = jnp.arange(x.shape[1])[:, None] < lengths
    y = x.swapaxes(0, 1)
    finals = []
    with jax.default_matmul_precision(_NAMES[sizes.precision]):
        for layer in range(sizes.num_layers):
            outputs = []
            for direction in range(sizes.directions):
                row = layer * sizes.directions + direction
                carry = (c_0[row], h_0[row])
                reverse = bool(direction)
                final, output = fused.jitted_lstm_layer(
                    reverse, cells[row], y, valid, carry
                )
                finals.append(final)
                outputs.append(output)
            y = jnp.concatenate(outputs, axis=-1)
    c_n, h_n = map(jnp.stack, zip(*finals, strict=True))
    return y.swapaxes(0, 1), h_n, c_n


def forward_keeping(*arguments, sizes: Sizes, kept_size: int):
    """The same, and nothing in the place of what cuDNN keeps."""
    nothing = jnp.full(kept_size, jnp.nan, jnp.float32)
    return *forward(*arguments, sizes=sizes), nothing


def tangents(*operands, sizes: Sizes):
    """The tangents of `forward`'s results, linear in all after the known arguments."""
    floats, lengths = operands[:_FLOATS], operands[_FLOATS]

    def run(*floats):
        return forward(*floats, lengths, sizes=sizes)

    _, d_results = jax.jvp(run, floats, operands[_KNOWN:])
    return d_results


def backward(*operands, sizes: Sizes):
    """The transpose of `tangents`."""
    known, gradients = operands[:_KNOWN], operands[_KNOWN:]

    def linear_tangents(*linear):
        return tangents(*known, *linear, sizes=sizes)

    return jax.linear_transpose(linear_tangents, *known[:_FLOATS])(gradients)


def _call_forward(*arguments, sizes: Sizes):
    results, _ = rnn.lstm_fwd(*_row_major(arguments), **sizes._asdict())
    return _row_major(results)


def _call_forward_keeping(*arguments, sizes: Sizes, kept_size: int):
    results, (*_, kept) = rnn.lstm_fwd(*_row_major(arguments), **sizes._asdict())
    assert kept.shape == (kept_size,)
    return *_row_major(results), kept


def _call_backward(*operands, sizes: Sizes):
    *known, kept = operands[:_KNOWN]
    gradients = operands[_KNOWN:]
    residuals = (*_row_major(known), _copied(kept, known, gradients))
    *of_floats, _ = rnn.lstm_bwd(*sizes, residuals, _row_major(gradients))
    return _row_major(of_floats)


def _row_major(arrays):
    """The layout in which cuDNN reads and writes; JAX's calls leave it to XLA.

    Which takes (B, T, I) as it lies if that is a transposed (T, B, I) (JAX 0.11.2).
    """
    layouts = [Layout(tuple(range(array.ndim))) for array in arrays]
    return list(map(with_layout_constraint, arrays, layouts))


def _copied(kept, known, gradients):
    """`kept`, which cuDNN writes to, in memory of this call's own.

    XLA knows of no writing, and so would hand it as it is to every call for the same
    forward one. The condition never holds, since outputs are within ±1, of which XLA
    doesn't know; and it is of this call's gradients, so that two calls have two copies.
    """
    y, d_y = known[-1], gradients[0]
    never = (y[0, 0, 0] > 2) & jnp.isinf(d_y[0, 0, 0])
    return jnp.where(never, 0, kept)


def primitive_for(platform: str) -> jax.extend.core.Primitive:
    """The primitive of `forward`, whose calls on `platform` are cuDNN's."""

    def called(
        name: str, reference: Reference, call: Reference
    ) -> jax.extend.core.Primitive:
        primitive = primitive_with_reference(f"flax_lstm_cudnn_{name}", reference)
        lower_call = mlir.lower_fun(call, multiple_results=True)
        lower_reference = mlir.lower_fun(reference, multiple_results=True)

        def lower(context, *arguments, **params):
            calls = devices_if_callable(context.module_context) is not None
            return (lower_call if calls else lower_reference)(
                context, *arguments, **params
            )

        mlir.register_lowering(primitive, lower, platform=platform)
        return primitive

    forward_p = called("forward", forward, _call_forward)
    forward_keeping_p = called(
        "forward_keeping", forward_keeping, _call_forward_keeping
    )
    backward_p = called("backward", backward, _call_backward)
    tangents_p = primitive_with_reference("flax_lstm_cudnn_tangents", tangents)

    def derivative_of_forward(primals, tangents, *, sizes):
        y, h_n, c_n, kept = forward_keeping_p.bind(
            *primals, sizes=sizes, kept_size=_kept_size(primals, sizes)
        )
        linear = map(ad.instantiate_zeros, tangents[:_FLOATS])
        operands = varying_alike((*primals, y, kept, *linear))
        return [y, h_n, c_n], tangents_p.bind(*operands, sizes=sizes)

    ad.primitive_jvps[forward_p] = derivative_of_forward
    transpose_each_other(
        tangents_p,
        backward_p,
        backward,
        known=_KNOWN,
        linear=lambda **_: _FLOATS,
        gradients=_GRADIENTS,
    )
    return forward_p


def _kept_size(arguments: Any, sizes: Sizes) -> int:
    """Size of what cuDNN keeps for the call backward; it must be there to be asked."""
    shapes = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in arguments]
    run = functools.partial(_kept, sizes=sizes)
    return jax.eval_shape(run, *shapes).size


def _kept(*arguments, sizes: Sizes):
    _, (*_, kept) = rnn.lstm_fwd(*arguments, **sizes._asdict())
    return kept


forward_p = primitive_for("cuda")
