"""cuDNN's two calls as JAX primitives, with every derivative and under vmap.

As with the native loops (`_native_primitives`), each has a reference implementation,
taken from the fused one, for whatever cuDNN does not do. The derivative of the forward
call is a linear map that is always computed by its reference, and whose transpose is
the backward call: so reverse mode runs in cuDNN, while forward mode, second
derivatives, vmap, computations that XLA partitions over devices, and those for other
platforms and for export work as with the fused implementation.

Only cuDNN can read what its forward call saves for the backward call (the reserve
space). The reference has no use for it, and returns NaN in its place where it stands in
for a forward call: gradients that cuDNN computed from that would be visibly wrong.
"""

import functools
from typing import Any

import jax
import jax.extend.core
import jax.numpy as jnp
from jax.experimental import rnn
from jax.experimental.layout import Layout, with_layout_constraint
from jax.interpreters import ad, mlir
from jax.sharding import AbstractMesh, use_abstract_mesh

from flax_lstm import _fused_lstm as fused
from flax_lstm._cudnn_weights import CudnnOptions, split
from flax_lstm._reference_primitive import (
    Reference,
    devices_if_callable,
    lower_on,
    primitive_with_reference,
    transpose_each_other,
    varying_alike,
)

# The calls' floating-point arguments: x, h_0, c_0 and weights.
_FLOATS = 4
# Arguments that the derivative is not linear in: those, lengths, y and what is saved.
_KNOWN = _FLOATS + 3
# Of y, h_n and c_n.
_GRADIENTS = 3

_NAMES = {
    jax.lax.Precision.HIGH: "tensorfloat32",
    jax.lax.Precision.HIGHEST: "highest",
}


def forward(x, h_0, c_0, weights, lengths, *, options: CudnnOptions):
    """Outputs (B, T, D·H) and final states (L·D, B, H) of x (B, T, I)."""
    cells = split(weights, options)
    valid = jnp.arange(x.shape[1], dtype=lengths.dtype)[:, None] < lengths
    y = x.swapaxes(0, 1)
    finals = []
    with jax.default_matmul_precision(_NAMES[options.precision]):
        for layer in range(options.num_layers):
            outputs = []
            for direction in range(options.directions):
                row = layer * options.directions + direction
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


def forward_keeping(*arguments, options: CudnnOptions, kept_size: int):
    """As `forward`, followed by NaN in place of what cuDNN saves."""
    y, h_n, c_n = forward(*arguments, options=options)
    nothing = jnp.full(kept_size, jnp.nan, jnp.float32)
    # Of a mesh's devices each keeps its own.
    kept, _ = varying_alike((nothing, y))
    return y, h_n, c_n, kept


def tangents(*operands, options: CudnnOptions):
    """The tangents of `forward`'s results, linear in all after the known arguments."""
    floats, lengths = operands[:_FLOATS], operands[_FLOATS]

    def run(*floats):
        return forward(*floats, lengths, options=options)

    _, d_results = jax.jvp(run, floats, operands[_KNOWN:])
    return d_results


def backward(*operands, options: CudnnOptions):
    """The transpose of `tangents`."""
    known, gradients = operands[:_KNOWN], operands[_KNOWN:]

    def linear_tangents(*linear):
        return tangents(*known, *linear, options=options)

    return jax.linear_transpose(linear_tangents, *known[:_FLOATS])(gradients)


def _call_forward(*arguments, options: CudnnOptions):
    results, _ = rnn.lstm_fwd(*_row_major(arguments), **options._asdict())
    return _row_major(results)


def _call_forward_keeping(*arguments, options: CudnnOptions, kept_size: int):
    results, (*_, kept) = rnn.lstm_fwd(*_row_major(arguments), **options._asdict())
    assert kept.shape == (kept_size,)
    return *_row_major(results), kept


def _call_backward(*operands, options: CudnnOptions):
    *known, kept = operands[:_KNOWN]
    gradients = operands[_KNOWN:]
    residuals = (*_row_major(known), _copied(kept, known, gradients))
    *of_floats, _ = rnn.lstm_bwd(*options, residuals, _row_major(gradients))
    return _row_major(of_floats)


def _of_one_device(context: mlir.LoweringRuleContext) -> mlir.LoweringRuleContext:
    """`context` with arrays of no mesh: a call sees those of its own device only.

    On a mesh with explicit sharding an array's type has its sharding, also if the mesh
    is of one device, and operations that would keep it must be told how.
    """

    def bare(avals):
        return [jax.core.ShapedArray(aval.shape, aval.dtype) for aval in avals]

    return context.replace(
        avals_in=bare(context.avals_in), avals_out=bare(context.avals_out)
    )


def _row_major(arrays):
    """Row-major, the layout that cuDNN reads and writes; JAX leaves it to XLA.

    XLA would not lay out (B, T, I) anew if it is a transposed (T, B, I) (JAX 0.11.2).
    """
    layouts = [Layout(tuple(range(array.ndim))) for array in arrays]
    return list(map(with_layout_constraint, arrays, layouts))


def _copied(kept, known, gradients):
    """`kept`, which cuDNN overwrites, in a buffer for this call alone.

    XLA does not know that it is overwritten, and would pass the same buffer to every
    backward call of one forward call. So the first elements are written anew, with
    their own values: XLA does that in place if no other call reads the buffer, and else
    in a copy.

    To XLA the writes of two calls must differ, or it makes one of them. So what is
    written depends on this call's gradients, by a condition that never holds (outputs
    are within ±1), which XLA can't know. The elements of the gradients are chosen by an
    index that it can't know either: some it does know, zeros where a loss does not
    read, and they would be the same in both.
    """
    y = known[-1]
    never = y[0, 0, 0] > 2
    index = never.astype(jnp.int32)
    numbers = [
        jax.lax.dynamic_index_in_dim(gradient.reshape(-1), index, keepdims=False)
        for gradient in gradients
    ]
    first = jnp.where(never, jnp.stack(numbers), kept[: len(numbers)])
    return jax.lax.dynamic_update_slice(kept, first, (0,))


def primitive_for(platform: str) -> jax.extend.core.Primitive:
    """The primitive of `forward`, which is lowered to cuDNN's calls on `platform`."""

    def called(
        name: str, reference: Reference, call: Reference
    ) -> jax.extend.core.Primitive:
        primitive = primitive_with_reference(f"flax_lstm_cudnn_{name}", reference)
        lower_call = mlir.lower_fun(call, multiple_results=True)

        def lower(context, *arguments, **params):
            if devices_if_callable(context.module_context) is None:
                return None
            with use_abstract_mesh(AbstractMesh((), ())):
                return lower_call(_of_one_device(context), *arguments, **params)

        lower_on(platform, primitive, reference, lower)
        return primitive

    forward_p = called("forward", forward, _call_forward)
    forward_keeping_p = called(
        "forward_keeping", forward_keeping, _call_forward_keeping
    )
    backward_p = called("backward", backward, _call_backward)
    tangents_p = primitive_with_reference("flax_lstm_cudnn_tangents", tangents)

    def derivative_of_forward(primals, tangents, *, options):
        y, h_n, c_n, kept = forward_keeping_p.bind(
            *primals, options=options, kept_size=_kept_size(primals, options)
        )
        linear = map(ad.instantiate_zeros, tangents[:_FLOATS])
        operands = varying_alike((*primals, y, kept, *linear))
        return [y, h_n, c_n], tangents_p.bind(*operands, options=options)

    ad.primitive_jvps[forward_p] = derivative_of_forward
    transpose_each_other(
        tangents_p,
        backward_p,
        known=_KNOWN,
        linear=lambda **_: _FLOATS,
        gradients=_GRADIENTS,
    )
    return forward_p


def _kept_size(arguments: Any, options: CudnnOptions) -> int:
    """Size of what cuDNN saves for the backward call; to ask, cuDNN must be there."""
    shapes = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in arguments]
    run = functools.partial(_kept, options=options)
    return jax.eval_shape(run, *shapes).size


def _kept(*arguments, options: CudnnOptions):
    _, (*_, kept) = rnn.lstm_fwd(*arguments, **options._asdict())
    return kept


forward_p = primitive_for("cuda")
