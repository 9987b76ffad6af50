"""JAX primitives with a reference implementation in JAX operations.

Where a computation is lowered for a platform that has faster code for it, that code is
called. The reference provides everything else: shapes, derivatives, vmap, and what is
compiled where the call can't be made.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.extend.core
from jax.interpreters import ad, batching, mlir
from jax.interpreters.xla import apply_primitive

from flax_lstm._recurrence import with_varying_axes_of

Reference = Callable[..., Any]


def varying_alike(arrays: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
    """`arrays` cast to one set of varying mesh axes, as `jax.shard_map` asks for."""
    return with_varying_axes_of(arrays, ())


def primitive_with_reference(
    name: str, reference: Reference
) -> jax.extend.core.Primitive:
    """A primitive with the shapes, derivatives and batching of `reference`.

    It is lowered as the reference unless something faster is registered for a platform.
    """
    primitive = jax.extend.core.Primitive(name)
    primitive.multiple_results = True

    @functools.cache
    def results(*arguments, **params):
        run = functools.partial(reference, **params)
        return jax.make_jaxpr(run)(*arguments).out_avals

    def derivative(primals, tangents, **params):
        run = functools.partial(reference, **params)
        return jax.jvp(run, primals, tuple(map(ad.instantiate_zeros, tangents)))

    def batched(arguments, axes, **params):
        run = functools.partial(reference, **params)
        outputs = jax.vmap(run, in_axes=tuple(axes))(*arguments)
        return outputs, (0,) * len(outputs)

    primitive.def_impl(functools.partial(apply_primitive, primitive))
    primitive.def_abstract_eval(lambda *avals, **params: results(*avals, **params))
    ad.primitive_jvps[primitive] = derivative
    batching.primitive_batchers[primitive] = batched
    mlir.register_lowering(primitive, mlir.lower_fun(reference, multiple_results=True))
    return primitive


def lower_on(
    platform: str,
    primitive: jax.extend.core.Primitive,
    reference: Reference,
    lower_call: Callable[..., Sequence[Any] | None],
) -> None:
    """Lowers `primitive` on `platform` by `lower_call`, a lowering rule.

    Where that returns None, `reference` is compiled.
    """
    lower_reference = mlir.lower_fun(reference, multiple_results=True)

    def lower(context, *arguments, **params):
        values = lower_call(context, *arguments, **params)
        if values is None:
            return lower_reference(context, *arguments, **params)
        return values

    mlir.register_lowering(primitive, lower, platform=platform)


def transpose_each_other(
    tangents_p: jax.extend.core.Primitive,
    backward_p: jax.extend.core.Primitive,
    known: int,
    linear: Callable[..., int],
    gradients: int,
) -> None:
    """Makes each of two linear maps the transpose of the other.

    Both take `known` arguments that they are not linear in, then those that they are,
    and then others that they are not linear in.

    Args:
        tangents_p: from tangents to tangents.
        backward_p: from gradients to gradients.
        known: as above.
        linear: from its parameters, the number of arguments that `tangents_p` is linear
            in.
        gradients: the number of arguments that `backward_p` is linear in.
    """

    def by(primitive, num_of_linear):
        def transpose(given, *operands, **params):
            end = known + num_of_linear(**params)
            first, middle, rest = operands[:known], operands[known:end], operands[end:]
            arguments = (*first, *map(ad.instantiate_zeros, given), *rest)
            transposed = primitive.bind(*varying_alike(arguments), **params)
            # An argument that is known is zero, and nobody asks for its transpose.
            asked = [
                result if ad.is_undefined_primal(operand) else None
                for operand, result in zip(middle, transposed, strict=True)
            ]
            return [*([None] * known), *asked, *([None] * len(rest))]

        return transpose

    ad.primitive_transposes[tangents_p] = by(backward_p, linear)
    ad.primitive_transposes[backward_p] = by(tangents_p, lambda **_: gradients)


def devices_if_callable(module: mlir.ModuleContext) -> int | None:
    """How many devices of this process `module` runs on; None if it can't call.

    It can where each device runs the code as it is on its own part of the data: on one
    device, or inside `jax.shard_map` over all axes of a mesh.
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
