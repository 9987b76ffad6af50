"""Reading a torch state_dict without torch, and saying what is wrong with one."""

import os
import re
from collections.abc import Iterable, Mapping
from typing import Any

import flax.core.meta
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from flax_lstm._validation import shown


def read_state_dict(source: Any) -> dict[str, np.ndarray]:
    """The arrays of a mapping, or of a `.safetensors` file; nothing is unpickled.

    Raises:
        OSError: there is no such file (FileNotFoundError), or it can't be read.
        ValueError: a file that is not a safetensors file.
        TypeError: neither a mapping nor a path, an entry that is not an array, or one
            of a dtype that NumPy lacks.
    """
    if isinstance(source, (str, os.PathLike)):
        return _read_safetensors(os.fspath(source))
    if isinstance(source, Mapping):
        return {str(name): _as_numpy(name, value) for name, value in source.items()}
    hint = "; pass its state_dict()" if hasattr(source, "state_dict") else ""
    raise TypeError(
        f"state_dict: expected a mapping of names to arrays, or the path of a "
        f".safetensors file, got {shown(source)}{hint}"
    )


def _read_safetensors(path: str) -> dict[str, np.ndarray]:
    import safetensors
    import safetensors.numpy

    try:
        with open(path, "rb"):
            pass
    except OSError as error:  # Of which safetensors says that there is no such file.
        raise type(error)(
            f"state_dict: expected a .safetensors file, got {path} ({error.strerror})"
        ) from error
    try:
        return dict(safetensors.numpy.load_file(path))
    except (safetensors.SafetensorError, OSError) as error:
        raise ValueError(
            f"state_dict: expected a .safetensors file, got {path} ({error}); a torch "
            f"pickle (.pt, .pth) is never read here; to convert one, in torch: "
            f"safetensors.torch.save_file(torch.load(path, weights_only=True), "
            f"new_path)"
        ) from error
    except AttributeError as error:  # What it raises for a dtype that NumPy lacks.
        raise TypeError(
            f"state_dict: expected dtypes that NumPy has, got {path} ({error})"
        ) from error


def _as_numpy(name: str, value: Any) -> np.ndarray:
    try:
        if hasattr(value, "detach"):  # A torch tensor, known without importing torch.
            value = value.detach().cpu()
            if str(value.dtype) == "torch.bfloat16":  # NumPy has no such dtype.
                return value.float().numpy().astype(jnp.bfloat16)
        array = np.asarray(value)
        # JAX takes no other byte order.
        return array.astype(array.dtype.newbyteorder("="), copy=False)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(
            f"state_dict: expected an array for {name}, got a "
            f"{type(value).__name__} ({error})"
        ) from error


def require_string(argument: str, value: Any) -> None:
    if not isinstance(value, str):
        raise TypeError(f"{argument}: expected a string, got {shown(value)}")


def require_floating(argument: str, tensors: Mapping[str, np.ndarray]) -> None:
    """Raises a TypeError that lists those that are not real and floating-point."""
    others = [
        f"{name} {array.dtype}"
        for name, array in sorted(tensors.items())
        if not jnp.issubdtype(array.dtype, jnp.floating)
    ]
    if others:
        raise TypeError(
            f"{argument}: expected floating-point numbers, got {', '.join(others)}"
        )


def behind(prefix: str, tensors: Mapping[str, Any]) -> dict[str, Any]:
    """The entries whose names start with `prefix`, without it."""
    return {
        k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)
    }


def as_jax(params: dict[str, Any]) -> dict[str, Any]:
    """A tree of NumPy arrays as one of JAX arrays, copies.

    `jnp.asarray` may share memory (JAX 0.10.0 does), which torch may go on training.
    """
    return jax.tree.map(jnp.array, params)


def flat(params: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """A tree's leaves, unboxed, by their paths such as `layer_0/hi/kernel`.

    Raises:
        TypeError: not a tree of arrays.
        ValueError: the variables that contain the tree.
    """
    if not isinstance(params, Mapping):
        raise TypeError(
            f"params: expected a mapping of names, the tree under 'params', got "
            f"{shown(params)}"
        )
    if names := [name for name in params if not isinstance(name, str)]:
        raise TypeError(f"params: expected strings as names, got {shown(names[0])}")
    if params.keys() == {"params"}:
        raise ValueError(
            "params: expected the tree under 'params', got the variables that contain "
            "it; pass variables['params']"
        )
    leaves = flax.core.meta.unbox(flatten_dict(dict(params), sep="/"))
    for path, leaf in leaves.items():
        if isinstance(leaf, jax.ShapeDtypeStruct) or not hasattr(leaf, "shape"):
            # From `flax.nnx`, whose State is not a tree of dicts.
            hint = (
                "; pass nnx.to_pure_dict(state)" if hasattr(leaf, "flat_state") else ""
            )
            raise TypeError(
                f"params: expected an array for {path}, got a "
                f"{type(leaf).__name__}{hint}"
            )
    return {path: np.asarray(leaf) for path, leaf in leaves.items()}


def writable(array: Any) -> np.ndarray:
    """A C-contiguous copy, which torch.from_numpy takes without a warning."""
    return np.array(array, order="C", copy=True)


def require_names(argument: str, expected: Iterable[str], got: Iterable[str]) -> None:
    """Raises a ValueError that lists what `got` lacks of `expected`, or has besides."""
    missing = sorted(set(expected) - set(got))
    unexpected = sorted(set(got) - set(expected))
    parts = []
    if missing:
        parts.append("missing " + ", ".join(missing))
    if unexpected:
        parts.append("unexpected " + ", ".join(unexpected))
    if parts:
        raise ValueError(f"{argument}: {'; '.join(parts)}")


_FIRST_MEMBER = {
    "params": "jax.tree.map(lambda a: a[0], params)",
    "state_dict": "{k: v[0] for k, v in state_dict.items()}",
}


def require_one_member(argument: str, arrays: Mapping[str, np.ndarray]) -> None:
    """Raises a ValueError if all have one axis more, that of an ensemble's members."""
    own = [re.split("[./]", name)[-1] for name in arrays]
    ranks = [1 if name.startswith("bias") else 2 for name in own]
    pairs = zip(arrays.values(), ranks, strict=True)
    more = {array.ndim - rank for array, rank in pairs}
    members = {array.shape[0] for array in arrays.values()} if more == {1} else set()
    if len(members) == 1:
        first = _FIRST_MEMBER[argument]
        raise ValueError(
            f"{argument}: expected those of one model, got those of {members.pop()} "
            f"along a leading axis; convert each alone, the first as {first}"
        )


def require_shapes(argument: str, shapes: Mapping[str, tuple[Any, Any]]) -> None:
    """Raises a ValueError unless each name's (expected, got) shapes are equal."""
    wrong = [
        f"{name} expected {expected}, got {tuple(got)}"
        for name, (expected, got) in shapes.items()
        if tuple(expected) != tuple(got)
    ]
    if wrong:
        raise ValueError(f"{argument}: wrong shapes: {'; '.join(wrong)}")
