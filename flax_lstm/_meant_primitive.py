"""A primitive of JAX's that has a meaning in JAX's own operations.

What computes the same faster is called where a program is lowered for a platform that
has it; from the meaning comes everything else: shapes, derivatives, vmap, and what is
compiled where the call can't be made.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.extend.core
from jax.interpreters import ad, batching, mlir
from jax.interpreters.xla import apply_primitive

from flax_lstm._recurrence import with_varying_axes_of

Meaning = Callable[..., Any]


def varying_alike(arrays: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
    """As a primitive takes them inside `jax.shard_map`."""
    return with_varying_axes_of(arrays, ())


def primitive_of(name: str, meant: Meaning) -> jax.extend.core.Primitive:
    """With all that follows from what it means."""
    primitive = jax.extend.core.Primitive(name)
    primitive.multiple_results = True

    @functools.cache
    def results(*arguments, **params):
        run = functools.partial(meant, **params)
        return jax.make_jaxpr(run)(*arguments).out_avals

    def derivative(primals, tangents, **params):
        run = functools.partial(meant, **params)
        return jax.jvp(run, primals, tuple(map(ad.instantiate_zeros, tangents)))

    def batched(arguments, axes, **params):
        run = functools.partial(meant, **params)
        outputs = jax.vmap(run, in_axes=tuple(axes))(*arguments)
        return outputs, (0,) * len(outputs)

    primitive.def_impl(functools.partial(apply_primitive, primitive))
    primitive.def_abstract_eval(lambda *avals, **params: results(*avals, **params))
    ad.primitive_jvps[primitive] = derivative
    batching.primitive_batchers[primitive] = batched
    mlir.register_lowering(primitive, mlir.lower_fun(meant, multiple_results=True))
    return primitive


def devices_that_call(module: mlir.ModuleContext) -> int | None:
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
