"""The native loops as JAX primitives: their derivatives, and where they are called.

A layer has four primitives. The reference implementation of each (`_native_reference`)
provides whatever the loops do not:

- `forward_p`, `forward_keeping_p` and `backward_p` are the loops. Their batching under
  vmap, and the derivatives of the last two, are those of their reference.
- The derivative of `forward_p` is `tangents_p` of what `forward_keeping_p` saves.
- `tangents_p`, the linear map from tangents to tangents, is always its reference, but
  its transpose is `backward_p`. So reverse mode runs in the loops, and forward mode,
  second derivatives and vmap work as with the fused implementation (or a GRU's scan).

A loop is called where a computation is lowered for a CPU, or for an NVIDIA GPU where
that is asked for, and runs on one device or inside `jax.shard_map` over all of a mesh's
axes. Elsewhere, in a computation that XLA itself partitions over devices, and in one
that `jax.export` writes for machines that have no such loops, the reference is compiled
in its place.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.interpreters import ad

from flax_lstm import (
    _native_operands as operands,
    _native_reference as native_reference,
    _persistent_lstm as persistent,
)
from flax_lstm._fused_lstm import Kept
from flax_lstm._native_operands import Run, flat
from flax_lstm._reference_primitive import (
    Reference,
    devices_if_callable,
    lower_on,
    primitive_with_reference,
    transpose_each_other,
    varying_alike,
)
from flax_lstm.native import library
from flax_lstm.native.cores import usable_cores

# The largest kRows of native/vectors.h, and kRowsAtOnce of native/weight_gradients.h.
_MAX_TILE_ROWS = 6
_CHUNK_ROWS = 128


def lower_to_loop(
    primitive,
    reference: Reference,
    target: str,
    overwritten: range = range(0),
    scratch_size: Callable[..., int] | None = None,
) -> None:
    """Has `primitive` call a CPU's loop where one can be called.

    Args:
        primitive: the one to lower.
        reference: what is compiled where no loop can be called.
        target: the loop's name, after that of its cell.
        overwritten: arguments that the loop overwrites; they become results after its
            own. XLA copies those that are still needed elsewhere.
        scratch_size: from the arguments, how many elements of scratch memory the loop
            needs: its last result. As one of XLA's own buffers, it shares memory with
            whatever is needed at another time.
    """

    def lower(context, *arguments, options, **params):
        devices = devices_if_callable(context.module_context)
        if devices is None:
            return None
        library.CPU.register()
        params |= {
            "reverse": options.reverse,
            "threads": max(1, usable_cores() // devices),
        }
        known, results = context.avals_in, context.avals_out
        scratch = [] if scratch_size is None else [scratch_size(*known)]
        others = [known[index] for index in overwritten]
        others += [jax.core.ShapedArray((size,), jnp.float32) for size in scratch]
        call = jax.ffi.ffi_lowering(
            f"flax_{options.cell}_{target}",
            operand_output_aliases={
                index: len(results) + n for n, index in enumerate(overwritten)
            },
        )
        context = context.replace(avals_out=[*results, *others])
        return call(context, *arguments, **params)[: len(results)]

    lower_on("cpu", primitive, reference, lower)


def lower_to_kernel(
    primitive, reference: Reference, lower_call, platform="cuda"
) -> None:
    """Has `primitive` call a GPU's kernel where it is asked for and applicable."""

    def lower(context, *arguments, options, **params):
        calls = (
            options.on_gpu
            and devices_if_callable(context.module_context) is not None
            and persistent.can_serve(context)
        )
        if not calls:
            return None
        return lower_call(context, *arguments, options=options, **params)

    lower_on(platform, primitive, reference, lower)


def _scratch_size(x: Any, kernel: Any, *_: Any) -> int:
    """An upper bound on what `WeightGradients::scratch_size` asks for."""
    steps, batch, inputs = x.shape
    units = kernel.shape[-1]
    most_inputs = inputs + units + _MAX_TILE_ROWS
    return (steps * batch + _CHUNK_ROWS) * most_inputs


forward_p = primitive_with_reference("flax_lstm_forward", native_reference.forward)
forward_keeping_p = primitive_with_reference(
    "flax_lstm_forward_keeping", native_reference.forward_keeping
)
backward_p = primitive_with_reference("flax_lstm_backward", native_reference.backward)
tangents_p = primitive_with_reference("flax_lstm_tangents", native_reference.tangents)

lower_to_loop(forward_p, native_reference.forward, "forward")
lower_to_loop(forward_keeping_p, native_reference.forward_keeping, "forward_keeping")
lower_to_loop(
    backward_p,
    native_reference.backward,
    "backward",
    overwritten=operands.GATES_OF_RUN,
    scratch_size=_scratch_size,
)

lower_to_kernel(
    forward_p,
    native_reference.forward,
    persistent.forward_lowering("flax_lstm_persistent_forward"),
)
lower_to_kernel(
    forward_keeping_p,
    native_reference.forward_keeping,
    persistent.forward_lowering("flax_lstm_persistent_forward_keeping"),
)
lower_to_kernel(
    backward_p,
    native_reference.backward,
    persistent.backward_lowering("flax_lstm_persistent_backward"),
)


def derivative_of_forward(primals, tangents, *, options):
    y, h_n, c_n, *kept = forward_keeping_p.bind(*primals, options=options)
    layer, valid = operands.of_forward(primals)
    kernels = layer.weights._replace(b=None)
    run = Run(layer.x, kernels, layer.h_0, y, Kept(*kept, m=None))
    # JAX's zeros are no leaves of a tree: arrays first, and those of x not at all.
    needs_x = not isinstance(tangents[0], ad.Zero)
    of_layer = tangents[: operands.num_of_tangents(needs_x=True)]
    linear = map(ad.instantiate_zeros, of_layer if needs_x else of_layer[1:])
    arrays = flat(run, *linear, valid)
    d_results = tangents_p.bind(
        *varying_alike(tuple(arrays)), options=options, needs_x=needs_x
    )
    return [y, h_n, c_n], d_results


def transpose_to_each_other(tangents, backward) -> None:
    """Has primitives such as `tangents_p` and `backward_p` transpose each other."""
    transpose_each_other(
        tangents,
        backward,
        known=operands.NUM_OF_RUN,
        linear=lambda needs_x, **_: operands.num_of_tangents(needs_x),
        gradients=operands.NUM_OF_GRADIENTS,
    )


ad.primitive_jvps[forward_p] = derivative_of_forward
transpose_to_each_other(tangents_p, backward_p)
