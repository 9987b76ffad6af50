"""How torch initialises its recurrent and linear layers."""

import inspect
import math

import jax
import jax.numpy as jnp
from jax.nn.initializers import Initializer


def torch_uniform(size: int) -> Initializer:
    """U(-1/√n, 1/√n), torch's draw; n is a recurrent layer's H, a Linear's in_features.

    `jax.nn.initializers.uniform(bound)` draws from [0, bound), so it can't be used
    here: torch's initial weights are centred on zero.
    """
    bound = 1 / math.sqrt(size)

    def init(key, shape, dtype=None, out_sharding=None):
        del out_sharding  # Part of JAX's protocol; parameters here are not sharded.
        dtype = dtype or jnp.float32
        return jax.random.uniform(key, shape, dtype, minval=-bound, maxval=bound)

    return init


def torch_recurrent_bias(hidden_size: int) -> Initializer:
    """The sum of two draws from U(-1/√H, 1/√H): torch's `b_ih` plus its `b_hh`."""
    draw = torch_uniform(hidden_size)

    def init(key, shape, dtype=None, out_sharding=None):
        del out_sharding
        key_ih, key_hh = jax.random.split(key)
        return draw(key_ih, shape, dtype) + draw(key_hh, shape, dtype)

    return init


def offset_by(init: Initializer, offset: float) -> Initializer:
    """`init` with the constant `offset` added to every entry, boxed or not."""
    if not offset:
        return init

    def shifted(key, shape, dtype=None, out_sharding=None):
        del out_sharding
        drawn = init(key, shape, dtype or jnp.float32)
        return jax.tree.map(lambda array: array + offset, drawn)

    return shifted


def named(option: str, init: Initializer) -> Initializer:
    """The user's `init` for `option`; a TypeError if it returns an initializer instead.

    `lecun_normal` for `lecun_normal()` is a slip to which JAX responds with an error
    from deep within its own code.
    """

    def draw(key, shape, dtype=None, out_sharding=None):
        del out_sharding
        _require_call(option, init, key, shape, dtype)
        drawn = init(key, shape, dtype)
        if callable(drawn):
            raise _no_initializer(option, init, "which returned a function")
        return drawn

    return draw


def _require_call(option, init, *arguments):
    try:
        signature = inspect.signature(init)
    except (TypeError, ValueError):  # Some functions in C have none.
        return
    try:
        signature.bind(*arguments)
    except TypeError as error:
        raise _no_initializer(option, init, str(error)) from None


def _no_initializer(option, init, why):
    name = getattr(init, "__name__", type(init).__name__)
    return TypeError(
        f"{option}: expected an initializer, a function of a key, a shape and a dtype "
        f"such as nn.initializers.lecun_normal() or nn.initializers.zeros, got {name}"
        f", {why}"
    )
