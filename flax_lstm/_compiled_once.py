"""Running modules through jitted functions that JAX finds in its cache again.

JAX caches what it has traced and compiled by the identity of the function. A lifted
scan makes new functions in every call: outside of `jax.jit` each call of a stack would
be compiled anew, and inside of it each layer would be traced anew. Besides, a jitted
function is dispatched once, whereas eagerly JAX has the overhead of every operation,
most of all in a gradient (`python -m experiments.benchmark --parts=eager`).

A cached function does not notice settings that change outside of its arguments. So only
functions that declare that they may be cached (`cacheable`) are, and with modules of
this package's and Flax's classes only: users' own recurrences, stacks and cells run as
they are.

Source: https://docs.jax.dev/en/latest/jit-compilation.html#jit-and-caching
"""

import dataclasses
import functools
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

import flax.errors
import flax.linen as nn
import jax
import numpy as np
from flax.core.meta import unbox

Function = Callable[..., Any]
Marked = TypeVar("Marked", bound=Function)

# Suffixes of the fields that are read only where parameters are created.
_INITIALIZER_SUFFIXES = ("kernel_init", "bias_init", "carry_init")
_DEPENDS_ON = "_flax_lstm_depends_on"


def cacheable(
    depends_on: Callable[[Any], Hashable] = lambda modules: None,
) -> Callable[[Marked], Marked]:
    """Marks a function of bound modules and arrays whose compiled form may be cached.

    It must draw no random numbers and write no variables, and its results must depend
    only on its arguments, the modules' options and `"params"`, JAX's configuration, and
    what `depends_on` returns for the modules.
    """

    def mark(run):
        setattr(run, _DEPENDS_ON, depends_on)
        return run

    return mark


def cacheable_like(other: Function) -> Callable[[Marked], Marked]:
    """Marks a function as cacheable if `other`, which it calls, is; and names it so."""

    def mark(run):
        run.__name__ = run.__qualname__ = getattr(other, "__name__", "run")
        return cacheable(dependencies_of(other))(run) if is_cacheable(other) else run

    return mark


def is_cacheable(run: Function) -> bool:
    return hasattr(run, _DEPENDS_ON)


def dependencies_of(run: Function) -> Callable[[Any], Hashable]:
    """What `run` was marked with."""
    return getattr(run, _DEPENDS_ON)


@functools.cache
def compiled_once(
    run: Function, *, static: tuple[str, ...] = (), named: bool = True
) -> Function:
    """`run`, traced and compiled once for equal modules and arrays of equal shapes.

    Where a module is of a user's class, creates parameters, can't be hashed, or is
    watched (by interceptors, or for intermediates), `run` itself is called.

    Args:
        run: marked as `cacheable`, with a module as its first argument, or a tuple of
            modules (or of such tuples, …).
        static: names of its options that are not arrays.
        named: False to share one compiled function among modules of any name; inside
            of it they have none.
    """
    depends_on = dependencies_of(run)

    def program(modules, ambient, variables, *arrays, **others):
        del ambient  # Only part of the key of JAX's cache.
        bound = jax.tree.map(lambda module, own: module.bind(own), modules, variables)
        return run(bound, *arrays, **others)

    program.__name__ = program.__qualname__ = run.__name__
    program = jax.jit(program, static_argnames=("modules", "ambient", *static))

    @functools.wraps(run)  # Copies the mark of `cacheable`, too.
    def run_cached(modules, *arrays, **others):
        key = _cache_key(modules, named)
        variables = jax.tree.map(_parameters, modules)
        if key is None or not all(map(_is_array, jax.tree.leaves(variables))):
            return run(modules, *arrays, **others)
        ambient = (depends_on(modules), str(nn.get_logical_axis_rules()))
        try:
            return program(key, ambient, variables, *arrays, **others)
        except flax.errors.FlaxError:
            pass
        # Parameters are missing or have the wrong shape: `run` creates them if Flax is
        # told to, or raises an error that also names the layer.
        return run(modules, *arrays, **others)

    return run_cached


def _cache_key(modules: Any, named: bool) -> Any:
    """The modules without variables and initializers, or None if they must run as is.

    Flax compares existing parameters only in shape with what initializers would make.
    """

    def options(module):
        names = [f.name for f in dataclasses.fields(module)]
        drawn = [n for n in names if n.endswith(_INITIALIZER_SUFFIXES)]
        drawn = [n for n in drawn if callable(getattr(module, n))]
        same = dict.fromkeys(drawn, nn.initializers.zeros)
        return module.clone(name=module.name if named else None, parent=None, **same)

    leaves = jax.tree.leaves(modules)
    if _is_watched() or not all(map(_is_known, leaves)) or any(map(_writes, leaves)):
        return None
    key = jax.tree.map(options, modules)
    try:
        hash(key)
    except TypeError:
        return None
    return key


def _is_known(module: Any) -> bool:
    return type(module).__module__.partition(".")[0] in (__package__, "flax")


def _parameters(module: Any) -> Any:
    # Unboxed, since how a box shards its value depends on `nn.logical_axis_rules`.
    return {"params": unbox(module.variables.get("params", {}))}


def _is_array(leaf: Any) -> bool:
    return isinstance(leaf, (jax.Array, np.ndarray))


def _writes(module: Any) -> bool:
    """Whether it is creating parameters, or its outputs are being captured."""
    creates = module.is_initializing() and not module.variables.get("params")
    return creates or module.is_mutable_collection("intermediates")


def _is_watched() -> bool:
    """Whether `nn.intercept_methods` is active, which a cached function would bypass.

    Flax has no public way to ask; if this private one is removed, nothing is cached.
    """
    return bool(getattr(nn.module, "_global_interceptor_stack", True))
