"""Checks of what users pass; messages name the argument, what was expected and got.

Nothing here knows of a cell or a layer. The wording follows torch's where torch
has a message for the case.
"""

import math
import numbers
import operator
from collections.abc import Collection, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def require_positive_int(name: str, value: Any) -> None:
    """`value` is an integer of at least 1, and not a bool."""
    _require_int(name, value, "a positive integer")
    if value < 1:
        raise ValueError(f"{name}: expected a positive integer, got {value}")


def require_natural_int(name: str, value: Any) -> None:
    """`value` is an integer of at least 0, and not a bool."""
    _require_int(name, value, "zero or a positive integer")
    if value < 0:
        raise ValueError(f"{name}: expected zero or a positive integer, got {value}")


def _require_int(name: str, value: Any, expected: str) -> None:
    try:
        if isinstance(value, (bool, np.bool_)):
            raise TypeError
        operator.index(value)
    except TypeError:
        raise TypeError(f"{name}: expected {expected}, got {shown(value)}") from None


def as_ints(module: Any, names: Collection[str]) -> None:
    """Makes those checked options of `module` Python's integers.

    An array of one integer is one, too, but has no hash: the module would be traced
    anew at every call, and could be no static argument.
    """
    for name in names:
        if hasattr(module, name):
            object.__setattr__(module, name, operator.index(getattr(module, name)))


def require_probability(name: str, value: Any) -> None:
    """`value` is a number in [0, 1], and not a bool."""
    expected = "a number in [0, 1], the probability that an element is zeroed"
    _require_real(name, value, expected)
    if not 0 <= value <= 1:
        raise ValueError(f"{name}: expected {expected}, got {value}")


def require_number(name: str, value: Any) -> None:
    """`value` is a finite number, and not a bool."""
    _require_real(name, value, "a finite number")
    if not math.isfinite(value):
        raise ValueError(f"{name}: expected a finite number, got {value}")


def require_positive_number(name: str, value: Any) -> None:
    """`value` is a number larger than 0, infinity too, and not a bool."""
    _require_real(name, value, "a positive number")
    if not value > 0:
        raise ValueError(f"{name}: expected a positive number, got {value}")


def _require_real(name: str, value: Any, expected: str) -> None:
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name}: expected {expected}, got {shown(value)}")


def require_bool(name: str, value: Any) -> None:
    """`value` is True or False (a traced or integer truth value is refused)."""
    if not isinstance(value, (bool, np.bool_)):
        hint = ""
        if isinstance(value, jax.core.Tracer):
            hint = (
                "; under jax.jit name it in static_argnames, or set it inside of the "
                "function"
            )
        raise TypeError(f"{name}: expected True or False, got {shown(value)}{hint}")


def require_one_of(name: str, value: Any, allowed: Collection[str]) -> None:
    """`value` is one of the strings in `allowed`."""
    if not isinstance(value, str) or value not in allowed:
        choices = ", ".join(repr(choice) for choice in allowed)
        raise ValueError(f"{name}: expected one of {choices}, got {value!r}")


def require_floating_dtype(name: str, value: Any) -> None:
    """`value` is a real floating-point dtype."""
    try:
        # To NumPy, None means float64.
        floating = value is not None and jnp.issubdtype(value, jnp.floating)
    except TypeError:
        floating = False
    if not floating:
        raise TypeError(
            f"{name}: expected a floating-point dtype of JAX or NumPy, such as "
            f"jnp.float32, got {value!r}"
        )


def require_float32(dtype: Any, implementation: str) -> None:
    """Raises a ValueError unless `implementation` computes in `dtype`."""
    if jnp.dtype(dtype) != jnp.float32:
        raise ValueError(
            f"dtype: expected float32 with implementation={implementation!r}, which "
            f"supports no other, got {jnp.dtype(dtype)}"
        )


def require_initializer(name: str, value: Any) -> None:
    """`value` is None, or a function of a key, a shape and a dtype."""
    if value is not None and not callable(value):
        raise TypeError(
            f"{name}: expected an initializer, such as nn.initializers.zeros or "
            f"nn.initializers.lecun_normal(), or None, got {shown(value)}"
        )


def require_weights(name: str, tree: Any) -> None:
    """No leaf is complex, or an object with a dtype that JAX can't make an array of.

    Flax reports whatever else does not fit.
    """

    def fits(leaf):
        if not hasattr(leaf, "dtype"):
            return True
        becomes_one = hasattr(leaf, "__array__") or hasattr(leaf, "__jax_array__")
        # torch's dtypes have no kind.
        return becomes_one and getattr(leaf.dtype, "kind", "c") != "c"

    for path, leaf in jax.tree.leaves_with_path(tree):
        if not fits(leaf):
            where = jax.tree_util.keystr(path, simple=True, separator="/")
            raise TypeError(
                f"{name}: expected arrays of floating-point numbers, got "
                f"{shown(leaf)} as {where}"
            )


def as_floating_array(name: str, value: Any) -> jax.Array:
    """`value` as a JAX array; a TypeError unless its dtype is real floating."""
    if isinstance(value, np.ndarray):  # In any byte order.
        value = value.astype(value.dtype.newbyteorder("="), copy=False)
    try:
        array = jnp.asarray(value)
    except jax.errors.JaxRuntimeError:  # No memory, a transfer guard: not the value's.
        raise
    except (TypeError, ValueError, RuntimeError) as error:
        # What converts itself, such as torch's tensors, says why it could not.
        why = f" ({error})" if hasattr(value, "__array__") else ""
        if hasattr(value, "batch_sizes"):  # A PackedSequence of torch's.
            why = "; pass the padded array, and its lengths as seq_lengths="
        raise TypeError(
            f"{name}: expected an array of floating-point numbers, got "
            f"{shown(value)}{why}"
        ) from None
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise TypeError(
            f"{name}: expected a floating-point dtype, got {array.dtype} "
            f"(cast it first, for example {name}.astype(jnp.float32))"
        )
    return array


def require_input_shape(name: str, x: jax.Array, input_size: int, time: int) -> None:
    """`x` is 2D or 3D, `input_size` wide, and its axis `time` is not empty."""
    if x.ndim not in (2, 3):
        raise ValueError(
            f"{name}: expected 2D (unbatched) or 3D (batched), got {x.ndim}D "
            f"of shape {x.shape}"
        )
    if x.shape[-1] != input_size:
        raise ValueError(
            f"{name}: expected the last axis to be input_size {input_size}, "
            f"got {x.shape[-1]} in shape {x.shape}"
        )
    if x.shape[time] == 0:
        raise ValueError(
            f"{name}: expected a sequence length larger than 0, got shape {x.shape}"
        )


def as_states(names: Sequence[str], state: Any) -> tuple[Any, ...]:
    """`state` as a tuple with one entry for each of `names`.

    As in torch, several states are passed as a tuple (or list), and a single one as a
    bare array.
    """
    one = len(names) == 1
    expected = f"an array {names[0]}" if one else f"a tuple ({', '.join(names)})"
    if isinstance(state, (tuple, list)) is one:
        raise TypeError(f"hx: expected {expected}, got {shown(state)}")
    if one:
        return (state,)
    if len(state) != len(names):
        raise ValueError(
            f"hx: expected {expected}, got {shown(state)} of length {len(state)}"
        )
    return tuple(state)


def require_shape(name: str, array: jax.Array, expected: tuple[int, ...]) -> None:
    """`array` has exactly the shape `expected`."""
    if array.shape != expected:
        raise ValueError(f"{name}: expected shape {expected}, got {array.shape}")


def as_lengths(
    lengths: Any, x_shape: tuple[int, ...], batch: int, steps: int
) -> jax.Array:
    """`seq_lengths` as (B,) int32 within [0, T].

    Concrete values outside of the range raise; those of a traced array (under jit,
    vmap, …) can't, and are clipped to it.
    """
    name = "seq_lengths"
    if len(x_shape) == 2:
        raise ValueError(
            f"{name}: expected None with unbatched 2D input of shape {x_shape}; "
            f"cut the sequence to its length, or give it a batch axis"
        )
    if isinstance(lengths, np.ma.MaskedArray):  # NumPy would drop the mask.
        raise TypeError(
            f"{name}: expected an array of integers, got {shown(lengths)}; fill it "
            f"first, for example {name}.filled(0)"
        )
    array = _as_array(lengths)
    # To NumPy, a duration is an integer.
    integers = jnp.issubdtype(array.dtype, jnp.integer) and array.dtype.kind != "m"
    if array.size and not integers:
        raise TypeError(f"{name}: expected integers, got dtype {array.dtype}")
    if array.shape != (batch,):
        raise ValueError(f"{name}: expected shape ({batch},), got {array.shape}")
    if _is_concrete(array):
        values = np.asarray(array)
        outside = np.flatnonzero((values < 0) | (values > steps))
        if outside.size:
            row = int(outside[0])
            raise ValueError(
                f"{name}: expected lengths within [0, {steps}], "
                f"got {values[row]} in row {row}"
            )
    if isinstance(array, np.ndarray):  # In any byte order.
        return jnp.asarray(array.astype(np.int32))
    if _is_concrete(array):
        return array.astype(jnp.int32)
    # Clipped before the cast, so that no wide integer wraps around into the range; but
    # after it for a narrow dtype, which may not be able to represent `steps`.
    if array.dtype.itemsize < jnp.dtype(jnp.int32).itemsize:
        array = array.astype(jnp.int32)
    return jnp.clip(array, 0, steps).astype(jnp.int32)


def _as_array(value: Any) -> Any:
    """A JAX array if `value` is or holds one, else a NumPy array of any dtype."""
    if isinstance(value, jax.Array):
        return value
    if any(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(value)):
        return jnp.asarray(value)  # A list, of whose items one may be traced.
    try:
        return np.asarray(value)
    except ValueError:
        return np.asarray(None)


def _is_concrete(array: Any) -> bool:
    if isinstance(array, jax.core.Tracer):
        return False
    return not isinstance(array, jax.Array) or array.is_fully_addressable


def shown(value: Any) -> str:
    """`value` in an error: short things as they are, others by their type."""
    if isinstance(value, (int, float, complex, bool, str, type(None))):
        return f"{value!r}"
    if isinstance(value, np.ma.MaskedArray):
        return f"a masked array of shape {value.shape} and dtype {value.dtype}"
    if hasattr(value, "__array__") and hasattr(value, "dtype"):
        return f"an array of shape {tuple(value.shape)} and dtype {value.dtype}"
    return f"a {type(value).__name__}"
