r"""An LSTM layer with derivatives of its own: `implementation='fused'`.

What sets it apart from a scan over the cell:

- The input product, for all steps at once, comes before the loop; inside it is one
  product of h for all gates. On a CPU this is so for small sizes only
  (`_fused_products`): for larger ones a product per gate is faster, and for many rows
  so is a product of [x, h] with both weights, whose result never leaves the cache.
- The derivative is linear in the tangents, with factors that depend on the gates and
  the cell state. These are what is saved (`Kept`), five values per unit and step
  (six with a projection); the backward loop has one product and one tanh.
- No weight's derivative is computed inside a loop. Each is one product of all steps' x
  or h with all steps' gate derivatives.

The rule is a `jax.custom_jvp`, so that everything JAX derives from one (reverse
mode, forward over reverse, vmap, shard_map) comes from JAX itself. With
:math:`m = o ∘ \tanh c'` and :math:`z` the argument of a gate's function,

.. math::
    dz_t &= dx_t W_i + x_t dW_i + h_{t-1} dW_h + db + dh_{t-1} W_h \\
    dc_t &= f ∘ dc_{t-1} + \frac{∂c}{∂z_i} ∘ dz_i + \frac{∂c}{∂z_f} ∘ dz_f
            + \frac{∂c}{∂z_g} ∘ dz_g \\
    dm_t &= \frac{∂m}{∂z_o} ∘ dz_o + \frac{∂m}{∂c} ∘ dc_t \\
    dh_t &= dm_t W_{hr} + m_t dW_{hr}

where all but the terms with :math:`dh_{t-1}`, :math:`dc` and :math:`dm` are known
for all t beforehand. JAX's transpose of that loop is backpropagation through time.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from flax_lstm._compiled_once import cacheable
from flax_lstm._dtypes import at_least_float32
from flax_lstm._fused_products import gate_products, plan_elsewhere, plan_for_cpu
from flax_lstm._lstm_weights import (
    GATES,
    Weights,
    creates_params,
    require_known_step,
    weights_of,
)
from flax_lstm._recurrence import scan_over_time, with_varying_axes_of

Carry = tuple[jax.Array, jax.Array]


class Kept(NamedTuple):
    """What the derivative needs of every step; (B, H) each, (T, B, H) stacked."""

    i: jax.Array
    f: jax.Array
    g: jax.Array
    o: jax.Array
    c: jax.Array  # The one that the step started from.
    m: jax.Array | None  # o·tanh(c'), with a projection only.


class Slopes(NamedTuple):
    """Derivatives of one step's c' and m = o·tanh(c'); (B, H) each."""

    c_by_i: jax.Array
    c_by_f: jax.Array
    c_by_g: jax.Array
    c_by_c: jax.Array
    m_by_o: jax.Array
    m_by_c: jax.Array


@cacheable()
def run_fused_over_time(
    cell: Any,
    carry: Carry,
    inputs: jax.Array,
    *,
    valid: jax.Array | None,
    reverse: bool,
) -> tuple[Carry, jax.Array]:
    """A `Recurrence` for an `LSTMCell`."""
    require_known_step(cell, "fused")
    if creates_params(cell):
        return scan_over_time(cell, carry, inputs, valid=valid, reverse=reverse)
    weights = weights_of(cell, inputs.shape[-1])
    carry = with_varying_axes_of(carry, (inputs, valid, weights))
    return jitted_lstm_layer(reverse, weights, inputs, valid, carry)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def lstm_layer(
    reverse: bool,
    weights: Weights,
    x: jax.Array,
    valid: jax.Array | None,
    carry: Carry,
) -> tuple[Carry, jax.Array]:
    """Final `(c, h)` and outputs (T, B, P); arguments as in `scan_over_time`."""
    carry, y, _ = forward(reverse, weights, x, valid, carry, keep=False)
    return carry, y


# Identical layers are traced once, and calls outside of `jax.jit` don't recompile.
jitted_lstm_layer = jax.jit(lstm_layer, static_argnums=0)


@functools.partial(lstm_layer.defjvp, symbolic_zeros=True)
def _lstm_jvp(reverse, primals, tangents):
    weights, x, valid, carry = primals
    d_weights, d_x, _, d_carry = tangents
    final, y, kept = forward(reverse, weights, x, valid, carry, keep=True)
    h_before = shifted(reverse, valid, carry[1], y)
    d_z = _known_part_of_d_z(weights, x, h_before, d_weights, d_x)
    d_carry = jax.tree.map(_instantiated, d_carry, carry)
    d_m = None
    if weights.projection is not None and not _is_zero(d_weights.projection):
        d_m = product_over_steps(kept.m, d_weights.projection)
    d_final, d_y = linear_scan(reverse, weights, valid, kept, d_z, d_m, d_carry)
    return (final, y), (d_final, d_y)


def forward(reverse, weights, x, valid, carry, *, keep):
    """The carry after the last step, the outputs, and `Kept` if `keep`, else None."""
    loop = functools.partial(_loop, reverse, keep)
    on_cpu, elsewhere = plan_for_cpu(weights, x), plan_elsewhere(x)
    if on_cpu == elsewhere:
        return loop(elsewhere, weights, x, valid, carry)
    # The platform is the one that the program is lowered for, whatever JAX's default.
    return jax.lax.platform_dependent(
        weights,
        x,
        valid,
        carry,
        cpu=functools.partial(loop, on_cpu),
        default=functools.partial(loop, elsewhere),
    )


def _loop(reverse, keep, plan, weights, x, valid, carry):
    """`forward` with its products laid out by `plan`."""
    inputs, products = gate_products(weights, x, plan)

    def step(carry, inputs):
        inputs, is_valid = inputs
        c, h = carry
        z = products(inputs, h)
        if weights.b is not None:
            z = [part + bias[None] for part, bias in zip(z, weights.b, strict=True)]
        i, f, g, o = _sigmoid(z[0]), _sigmoid(z[1]), jnp.tanh(z[2]), _sigmoid(z[3])
        # c may be float32 with bfloat16 gates, and is saved as such; the gates are not.
        new_c = f.astype(c.dtype) * c + (i * g).astype(c.dtype)
        tanh_c = jnp.tanh(new_c)
        m = (o.astype(c.dtype) * tanh_c).astype(h.dtype)
        new_h = m if weights.projection is None else m @ weights.projection
        kept = None
        if keep:
            kept = Kept(i, f, g, o, c, None if weights.projection is None else m)
        y = new_h
        if is_valid is not None:
            valid_row = is_valid[:, None]
            new_c = jnp.where(valid_row, new_c, c)
            new_h = jnp.where(valid_row, new_h, h)
            y = jnp.where(valid_row, y, jnp.zeros_like(y))
            if kept is not None and kept.m is not None:
                kept = kept._replace(m=jnp.where(valid_row, m, jnp.zeros_like(m)))
        return (new_c, new_h), (y, kept)

    steps = (inputs, valid)
    carry, (y, kept) = jax.lax.scan(
        step, carry, steps, reverse=reverse, unroll=plan.unroll
    )
    return carry, y, kept


def shifted(reverse, valid, h_0, y):
    """The h that each valid step started from, (T, B, P)."""
    if reverse:
        before = jnp.concatenate([y[1:], h_0[None]])
    else:
        before = jnp.concatenate([h_0[None], y[:-1]])
    if valid is not None and reverse:
        # A row's last valid step comes first; before it is padding, where y is zero.
        in_row = jnp.concatenate([valid[1:], jnp.ones_like(valid[:1])])
        before = jnp.where(in_row[..., None], before, h_0)
    return before


def _known_part_of_d_z(weights, x, h_before, d_weights, d_x):
    """The terms of dz, (T, B, 4·H), that no step has to wait for."""

    def any_given(tangents):
        return not all(_is_zero(tangent) for tangent in tangents or ())

    def joined(tangents, primals):
        parts = [_instantiated(*pair) for pair in zip(tangents, primals, strict=True)]
        return jnp.concatenate(parts, axis=-1)

    shape = (*x.shape[:2], len(GATES) * weights.h[0].shape[-1])
    d_z = jnp.zeros_like(x, shape=())
    if any_given(d_weights.x):
        d_z += product_over_steps(x, joined(d_weights.x, weights.x))
    if any_given(d_weights.h):
        d_z += product_over_steps(h_before, joined(d_weights.h, weights.h))
    if any_given(d_weights.b):
        d_z += over_steps(joined(d_weights.b, weights.b), shape)
    if not _is_zero(d_x):
        d_z += d_x @ jnp.concatenate(weights.x, axis=-1)
    return jnp.broadcast_to(d_z, shape)


def over_steps(d_bias, shape):
    """`d_bias` (N,), broadcast to `shape` (T, B, N).

    Its transpose, the bias's gradient, is a sum over all steps and rows, which needs
    more than the bits of bfloat16.
    """
    wide = d_bias.astype(at_least_float32(d_bias.dtype))
    return jnp.broadcast_to(wide, shape).astype(d_bias.dtype)


def product_over_steps(x, d_kernel):
    """x (T, B, K) · d_kernel (K, N), as a product of two matrices.

    Its transpose, the kernel's gradient, is then a matrix product, too. For a product
    with two axes of rows XLA:CPU would first make transposed copies of both factors. A
    batch that an explicit mesh shards has to remain an axis of its own.
    """
    if any(jax.typeof(x).sharding.spec):
        return x @ d_kernel
    steps, batch, features = x.shape
    product = x.reshape(steps * batch, features) @ d_kernel
    return product.reshape(steps, batch, d_kernel.shape[-1])


def linear_scan(reverse, weights, valid, kept, d_z, d_m, d_carry):
    """The tangents' own recurrence; linear in `d_z`, `d_m` and `d_carry`."""
    loop = functools.partial(_linear_loop, reverse)
    unroll = plan_elsewhere(d_z).unroll
    if unroll == 1:
        return loop(1, weights, valid, kept, d_z, d_m, d_carry)
    return jax.lax.platform_dependent(
        weights,
        valid,
        kept,
        d_z,
        d_m,
        d_carry,
        cpu=functools.partial(loop, 1),
        default=functools.partial(loop, unroll),
    )


def _linear_loop(reverse, unroll, weights, valid, kept, d_z, d_m, d_carry):
    """`linear_scan` with its loop unrolled `unroll` times."""
    kernel = jnp.concatenate(weights.h, axis=-1)
    d_carry = with_varying_axes_of(d_carry, (d_z, d_m, kept, kernel))

    # Else JAX would hoist the slopes into a loop of their own, which stacks all six.
    @functools.partial(jax.checkpoint, prevent_cse=False)
    def step(d_carry, inputs):
        d_c, d_h = d_carry
        d_z, d_m, kept, is_valid = inputs
        slopes = _slopes(kept, is_valid)
        d_gates = (d_z + d_h @ kernel).astype(d_c.dtype)
        d_i, d_f, d_g, d_o = jnp.split(d_gates, len(GATES), axis=-1)
        d_c = (
            slopes.c_by_c * d_c
            + slopes.c_by_i * d_i
            + slopes.c_by_f * d_f
            + slopes.c_by_g * d_g
        )
        new_d_h = (slopes.m_by_o * d_o + slopes.m_by_c * d_c).astype(d_h.dtype)
        if weights.projection is not None:
            new_d_h = new_d_h @ weights.projection
            if d_m is not None:
                new_d_h += d_m
        d_y = new_d_h
        if is_valid is not None:
            new_d_h += jnp.where(is_valid[:, None], jnp.zeros_like(d_h), d_h)
        return (d_c, new_d_h), d_y

    steps = (d_z, d_m, kept._replace(m=None), valid)
    return jax.lax.scan(step, d_carry, steps, reverse=reverse, unroll=unroll)


def _slopes(kept: Kept, is_valid: jax.Array | None) -> Slopes:
    """The slopes of one step; in padded rows c passes through, and the rest is 0."""
    c = kept.c
    gates = kept.i, kept.f, kept.g, kept.o
    i, f, g, o = (gate.astype(c.dtype) for gate in gates)
    tanh_c = jnp.tanh(f * c + i * g)
    slopes = Slopes(
        c_by_i=g * i * (1 - i),
        c_by_f=c * f * (1 - f),
        c_by_g=i * (1 - g * g),
        c_by_c=f,
        m_by_o=tanh_c * o * (1 - o),
        m_by_c=o * (1 - tanh_c * tanh_c),
    )
    if is_valid is None:
        return slopes
    valid_row = is_valid[:, None]
    masked = [jnp.where(valid_row, slope, jnp.zeros_like(slope)) for slope in slopes]
    passing = jnp.where(valid_row, f, jnp.ones_like(f))
    return Slopes(*masked)._replace(c_by_c=passing)


def _sigmoid(z: jax.Array) -> jax.Array:
    """σ(z), computed in float32 at least and rounded once."""
    wide = z.astype(at_least_float32(z.dtype))
    return jax.nn.sigmoid(wide).astype(z.dtype)


def _is_zero(tangent: Any) -> bool:
    return isinstance(tangent, SymbolicZero)


def _instantiated(tangent: Any, primal: jax.Array) -> jax.Array:
    return jnp.zeros_like(primal) if _is_zero(tangent) else tangent
