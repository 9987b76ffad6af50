"""Running modules by a program that JAX knows again.

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
    """`run`, traced and compiled once for all modules and arrays that are alike.

    Where a module makes parameters, can't be hashed, or is watched (by interceptors, or
    for intermediates), it is `run` itself. What was kept follows JAX's own
    configuration and nothing else that is set elsewhere, but for what `surroundings`
    tells.

    Args:
        run: a function of a bound module, or a tuple of such (of tuples, …), and of
            arrays; without randomness. The modules have no name unless `named`.
        static: its options that are no arrays.
        named: False for one program for modules of all names.
        surroundings: gives what else decides about the result.
    """
    return _compiled_once(run, static, named, surroundings)


@functools.cache
def _compiled_once(run, static, named, surroundings):
    @functools.partial(jax.jit, static_argnames=("modules", "around", *static))
    def program(modules, around, variables, *arrays, **others):
        del around
        bound = jax.tree.map(lambda module, own: module.bind(own), modules, variables)
        return run(bound, *arrays, **others)

    @functools.wraps(run)
    def run_known(modules, *arrays, **others):
        known = _known_again(modules, named)
        if known is None:
            return run(modules, *arrays, **others)
        # How a box shards what is in it is set elsewhere (`nn.logical_axis_rules`).
        variables = jax.tree.map(lambda module: unbox(module.variables), modules)
        try:
            return program(known, surroundings(), variables, *arrays, **others)
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
        names = [field.name for field in dataclasses.fields(module)]
        drawn = [
            n for n in names if n.endswith("_init") and callable(getattr(module, n))
        ]
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


def _writes(module: Any) -> bool:
    """Whether it makes parameters, or what it returns is captured."""
    return module.is_initializing() or module.is_mutable_collection("intermediates")


def _is_watched() -> bool:
    """Whether `nn.intercept_methods` is in force, which a kept program would not hear.

    Flax has no other way to ask; should this one go, nothing is kept.
    """
    return bool(getattr(nn.module, "_global_interceptor_stack", True))
