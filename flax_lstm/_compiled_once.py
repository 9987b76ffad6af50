"""Running modules by a program that JAX knows again.

JAX keeps what it traced and compiled of a function that is the same in the next call.
What a lifted scan is made of is new in every call: outside of `jax.jit` each call of a
stack would be compiled anew, and inside of it each layer traced anew. And one program
is handed over once, where JAX has its work with each operation by itself, and most in
a gradient (`python -m experiments.benchmark --parts=eager`).

What is kept does not follow what is set elsewhere. So only functions are kept that say
that they may be (`keepable`): ours do, and users' own need not. (A user's own cell is
run by a lifted scan, in which it can draw and write nothing anyhow.)

Source: https://docs.jax.dev/en/latest/jit-compilation.html#jit-and-caching
"""

import dataclasses
import functools
from collections.abc import Callable, Hashable
from typing import Any

import flax.errors
import flax.linen as nn
import jax
import numpy as np
from flax.core.meta import unbox

Function = Callable[..., Any]

# How fields end that are read where parameters are made, and nowhere else.
_OF_PARAMETERS = ("kernel_init", "bias_init", "carry_init")
_READS = "_flax_lstm_reads"


def keepable(
    reads: Callable[[Any], Hashable] = lambda modules: None,
) -> Callable[[Function], Function]:
    """Marks a function of bound modules and of arrays whose program may be kept.

    It draws no random numbers and writes no variables. Its results follow from its
    arguments, the modules' options and `"params"`, JAX's configuration, and what
    `reads` tells of the modules.
    """

    def mark(run):
        setattr(run, _READS, reads)
        return run

    return mark


def keepable_like(other: Function) -> Callable[[Function], Function]:
    """Marks a function that runs `other`, if that is marked, and names it alike."""

    def mark(run):
        run.__name__ = run.__qualname__ = getattr(other, "__name__", "run")
        return keepable(reads_of(other))(run) if is_keepable(other) else run

    return mark


def is_keepable(run: Function) -> bool:
    return hasattr(run, _READS)


def reads_of(run: Function) -> Callable[[Any], Hashable]:
    """What `run` was marked with."""
    return getattr(run, _READS)


@functools.cache
def compiled_once(
    run: Function, *, static: tuple[str, ...] = (), named: bool = True
) -> Function:
    """`run`, traced and compiled once for all modules and arrays that are alike.

    Where a module makes parameters, can't be hashed, or is watched (by interceptors, or
    for intermediates), it is `run` itself.

    Args:
        run: marked as `keepable`, with a module as its first argument, or a tuple of
            such (of tuples, …).
        static: its options that are no arrays.
        named: False for one program for modules of all names, which have none then.
    """
    reads = reads_of(run)

    def program(modules, around, variables, *arrays, **others):
        del around
        bound = jax.tree.map(lambda module, own: module.bind(own), modules, variables)
        return run(bound, *arrays, **others)

    program.__name__ = program.__qualname__ = run.__name__
    program = jax.jit(program, static_argnames=("modules", "around", *static))

    @functools.wraps(run)
    def run_known(modules, *arrays, **others):
        known = _known_again(modules, named)
        variables = jax.tree.map(_parameters, modules)
        if known is None or not all(map(_is_array, jax.tree.leaves(variables))):
            return run(modules, *arrays, **others)
        around = (reads(modules), str(nn.get_logical_axis_rules()))
        try:
            return program(known, around, variables, *arrays, **others)
        except flax.errors.FlaxError:
            pass
        # Parameters that are missing or misshaped: they are made, where Flax is told to
        # make them, or are an error that names the layer, too.
        return run(modules, *arrays, **others)

    return run_known


def _known_again(modules: Any, named: bool) -> Any:
    """The modules without variables and initializers, or None if they must run as is.

    Parameters that are there are compared with what initializers would make, in shape.
    """

    def options(module):
        names = [f.name for f in dataclasses.fields(module)]
        drawn = [n for n in names if n.endswith(_OF_PARAMETERS)]
        drawn = [n for n in drawn if callable(getattr(module, n))]
        same = dict.fromkeys(drawn, nn.initializers.zeros)
        return module.clone(name=module.name if named else None, parent=None, **same)

    if _is_watched() or any(map(_writes, jax.tree.leaves(modules))):
        return None
    known = jax.tree.map(options, modules)
    try:
        hash(known)
    except TypeError:
        return None
    return known


def _parameters(module: Any) -> Any:
    # How a box shards what is in it is set elsewhere (`nn.logical_axis_rules`).
    return {"params": unbox(module.variables.get("params", {}))}


def _is_array(leaf: Any) -> bool:
    return isinstance(leaf, (jax.Array, np.ndarray))


def _writes(module: Any) -> bool:
    """Whether it makes parameters, or what it returns is captured."""
    return module.is_initializing() or module.is_mutable_collection("intermediates")


def _is_watched() -> bool:
    """Whether `nn.intercept_methods` is in force, which a kept program would not hear.

    Flax has no other way to ask; should this one go, nothing is kept.
    """
    return bool(getattr(nn.module, "_global_interceptor_stack", True))
