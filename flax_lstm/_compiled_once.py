"""Running a cell over time by a program that JAX knows again.

JAX keeps what it traced and compiled of a function that is the same in the next call.
What a lifted scan is made of is new in every call: outside of `jax.jit` each call of a
stack would be compiled anew, and inside of it each layer is traced anew.

Source: https://docs.jax.dev/en/latest/jit-compilation.html#jit-and-caching
"""

import dataclasses
import functools
from typing import Any

import flax.errors
import flax.linen as nn
import jax

from flax_lstm._recurrence import Recurrence


@functools.cache
def compiled_once(recur: Recurrence) -> Recurrence:
    """`recur`, traced and compiled once for all cells and arrays that are alike.

    Where a cell makes parameters or is watched by interceptors, it is `recur` itself.
    """

    @functools.partial(jax.jit, static_argnames=("cell", "reverse"))
    def jitted(cell, variables, carry, inputs, valid, reverse):
        def run(cell):
            return recur(cell, carry, inputs, valid=valid, reverse=reverse)

        return nn.apply(run, cell)(variables)

    @functools.wraps(recur)
    def run(cell, carry, inputs, *, valid, reverse):
        if cell.is_initializing() or _is_watched():
            return recur(cell, carry, inputs, valid=valid, reverse=reverse)
        module, variables = cell.unbind()
        module = _without_initializers(module)
        try:
            return jitted(module, variables, carry, inputs, valid, reverse)
        except flax.errors.FlaxError:
            pass
        # Parameters that are missing or misshaped: they are made, where Flax is told to
        # make them, or are an error that names the layer, too.
        return recur(cell, carry, inputs, valid=valid, reverse=reverse)

    return run


def _without_initializers(cell: Any) -> Any:
    """One that equals others with the same options, and can be hashed.

    Parameters that are there are compared with what initializers would make, in shape.
    """
    names = (field.name for field in dataclasses.fields(cell))
    drawn = [name for name in names if name.endswith("_init")]
    return cell.clone(**dict.fromkeys(drawn, nn.initializers.zeros))


def _is_watched() -> bool:
    """Whether `nn.intercept_methods` is in force, which a kept program would not hear.

    Flax has no other way to ask; should this one go, nothing is kept.
    """
    return bool(getattr(nn.module, "_global_interceptor_stack", True))
