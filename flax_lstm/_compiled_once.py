"""Running a cell over time by a program that JAX knows again.

JAX keeps what it traced and compiled of a function that is the same in the next call.
What a lifted scan is made of is new in every call: outside of `jax.jit` each call of a
stack would be compiled anew, and inside of it each layer is traced anew.

Source: https://docs.jax.dev/en/latest/jit-compilation.html#jit-and-caching
"""

import dataclasses
import functools
from typing import Any

import flax.core.meta
import flax.errors
import flax.linen as nn
import jax

from flax_lstm._recurrence import Recurrence


@functools.cache
def compiled_once(recur: Recurrence) -> Recurrence:
    """`recur`, traced and compiled once for all cells and arrays that are alike.

    Where a cell makes parameters, can't be hashed or is watched by interceptors, it is
    `recur` itself. It must read nothing that is set elsewhere, but for JAX's own
    configuration: what was kept would not follow.
    """

    @functools.partial(jax.jit, static_argnames=("cell", "reverse"))
    def over_time(cell, variables, carry, inputs, valid, reverse):
        def run(cell):
            return recur(cell, carry, inputs, valid=valid, reverse=reverse)

        return nn.apply(run, cell)(variables)

    @functools.wraps(recur)
    def run(cell, carry, inputs, *, valid, reverse):
        options = None if cell.is_initializing() or _is_watched() else _options(cell)
        if options is None:
            return recur(cell, carry, inputs, valid=valid, reverse=reverse)
        # How a box shards what is in it is set elsewhere (`nn.logical_axis_rules`).
        variables = flax.core.meta.unbox(cell.variables)
        try:
            with jax.named_scope(cell.name):
                return over_time(options, variables, carry, inputs, valid, reverse)
        except flax.errors.FlaxError:
            pass
        # Parameters that are missing or misshaped: they are made, where Flax is told to
        # make them, or are an error that names the layer, too.
        return recur(cell, carry, inputs, valid=valid, reverse=reverse)

    return run


def _options(cell: Any) -> Any:
    """A cell without variables, name and initializers; None if it can't be hashed.

    Parameters that are there are compared with what initializers would make, in shape.
    """
    names = [field.name for field in dataclasses.fields(cell)]
    drawn = [n for n in names if n.endswith("_init") and callable(getattr(cell, n))]
    alike = cell.clone(name=None, **dict.fromkeys(drawn, nn.initializers.zeros))
    try:
        hash(alike)
    except TypeError:
        return None
    return alike


def _is_watched() -> bool:
    """Whether `nn.intercept_methods` is in force, which a kept program would not hear.

    Flax has no other way to ask; should this one go, nothing is kept.
    """
    return bool(getattr(nn.module, "_global_interceptor_stack", True))
