"""Running cells over time by a program that JAX knows again.

JAX keeps what it traced and compiled of a function that is the same in the next call.
What a lifted scan is made of is new in every call: outside of `jax.jit` each call of a
stack would be compiled anew, and inside of it each layer traced anew. And what is one
program is handed over once, where each operation by itself takes JAX some 50 µs, and
within a gradient ten times that.

Source: https://docs.jax.dev/en/latest/jit-compilation.html#jit-and-caching
"""

import dataclasses
import functools
from collections.abc import Callable, Hashable
from typing import Any

import flax.errors
import flax.linen as nn
import jax
from flax.core.meta import unbox


def compiled_once(
    run: Callable[..., Any],
    *,
    static: tuple[str, ...] = (),
    named: bool = True,
    surroundings: Callable[[], Hashable] = tuple,
) -> Callable[..., Any]:
    """`run`, traced and compiled once for all cells and arrays that are alike.

    Where a cell makes parameters, can't be hashed or is watched by interceptors, it is
    `run` itself. What was kept follows JAX's own configuration and nothing else that is
    set elsewhere, but for what `surroundings` tells.

    Args:
        run: a function of a bound cell, or a tuple of such (of tuples, …), and of
            arrays. The cells that it is given have no name unless `named`.
        static: its options that are no arrays.
        named: False for one program for cells of all names.
        surroundings: gives what else decides about the result.
    """
    return _compiled_once(run, static, named, surroundings)


@functools.cache
def _compiled_once(run, static, named, surroundings):
    @functools.partial(jax.jit, static_argnames=("cells", "around", *static))
    def program(cells, around, variables, *arrays, **others):
        del around
        bound = jax.tree.map(lambda cell, own: cell.bind(own), cells, variables)
        return run(bound, *arrays, **others)

    @functools.wraps(run)
    def run_known(cells, *arrays, **others):
        known = _known_again(cells, named)
        if known is None:
            return run(cells, *arrays, **others)
        # How a box shards what is in it is set elsewhere (`nn.logical_axis_rules`).
        variables = jax.tree.map(lambda cell: unbox(cell.variables), cells)
        try:
            return program(known, surroundings(), variables, *arrays, **others)
        except flax.errors.FlaxError:
            pass
        # Parameters that are missing or misshaped: they are made, where Flax is told to
        # make them, or are an error that names the layer, too.
        return run(cells, *arrays, **others)

    return run_known


def _known_again(cells: Any, named: bool) -> Any:
    """The cells without variables and initializers, or None if they must run as is.

    Parameters that are there are compared with what initializers would make, in shape.
    """

    def options(cell):
        names = [field.name for field in dataclasses.fields(cell)]
        drawn = [n for n in names if n.endswith("_init") and callable(getattr(cell, n))]
        same = dict.fromkeys(drawn, nn.initializers.zeros)
        return cell.clone(name=cell.name if named else None, parent=None, **same)

    if _is_watched() or any(cell.is_initializing() for cell in jax.tree.leaves(cells)):
        return None
    known = jax.tree.map(options, cells)
    try:
        hash(known)
    except TypeError:
        return None
    return known


def _is_watched() -> bool:
    """Whether `nn.intercept_methods` is in force, which a kept program would not hear.

    Flax has no other way to ask; should this one go, nothing is kept.
    """
    return bool(getattr(nn.module, "_global_interceptor_stack", True))
