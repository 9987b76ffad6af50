"""Weights from the study notes' torch classifier and its kin, and back."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from flax_lstm._state_dict import (
    as_jax,
    behind,
    flat,
    read_state_dict,
    require_floating,
    require_names,
    require_shapes,
    writable,
)
from flax_lstm._torch_layout import LAYOUTS, StackLayout
from flax_lstm._torch_weights import stack_from_torch, stack_to_torch

# torch's names of the layers beside the stack, and ours. The study notes' classifier
# has its head under this name, spelt like this.
_NOTES_HEAD = "classifer"
_ATTENTION = {
    "attention.weight": "attention/projection/kernel",
    "attention.bias": "attention/projection/bias",
    "query.weight": "attention/query/kernel",
}


def classifier_params_from_torch(
    state_dict: Any, head: str = _NOTES_HEAD
) -> dict[str, Any]:
    """Parameters of a classifier from the study notes' torch classifier.

    That is a torch.nn.LSTM named `lstm` with a torch.nn.Linear named `classifer`
    (the notes spell it so). For a `GRUClassifier` or an `RNNClassifier` it is a
    torch.nn.GRU named `gru` or a torch.nn.RNN named `rnn`, and with
    `pooling='attention'` there are two more torch.nn.Linear: `attention`, (D·P, D·P),
    and `query`, from D·P to 1 and without a bias.

    Args:
        state_dict: a mapping or the path of a `.safetensors` file, with the keys of
            these modules and no other.
        head: torch's name of the Linear, such as `'fc'`.

    Returns:
        What goes under `'params'`, with the entries `lstm`, `gru` or `rnn`, `head`,
        and `attention` if it is there.

    Raises:
        ValueError, TypeError: as `params_from_torch`.

    Example:
        >>> from flax_lstm import classifier_params_from_torch
        >>> classifier_params_from_torch({})
        Traceback (most recent call last):
            ...
        ValueError: state_dict: missing classifer.bias, classifer.weight, ...
    """
    tensors = read_state_dict(state_dict)
    cell = _first_cell(tensors, ".")
    prefix = f"{cell}."
    weights = behind(prefix, tensors)
    stack = StackLayout.named_in(weights)
    names = _head_named(head)
    if _ATTENTION.keys() & tensors.keys():
        names |= _ATTENTION
    _require_head(head, names, tensors)
    expected = {prefix + name for name in stack.names()} | names.keys()
    require_names("state_dict", expected, tensors)

    tree = stack_from_torch(weights, prefix, cell)
    width = stack.output_width(weights, cell)
    classes = tensors[f"{head}.weight"].shape[:1]
    shapes = {
        f"{head}.weight": (*classes, width),
        f"{head}.bias": classes,
        "attention.weight": (width, width),
        "attention.bias": (width,),
        "query.weight": (1, width),
    }
    require_shapes(
        "state_dict", {name: (shapes[name], tensors[name].shape) for name in names}
    )
    require_floating("state_dict", {name: tensors[name] for name in names})
    params = flatten_dict({cell: tree}, sep="/")
    params |= {path: tensors[name].T for name, path in names.items()}
    return as_jax(unflatten_dict(params, sep="/"))


def classifier_params_to_torch(
    params: Mapping[str, Any], head: str = _NOTES_HEAD
) -> dict[str, np.ndarray]:
    """Weights for the study notes' torch classifier; see `params_to_torch`.

    Args:
        params: the `'params'` of an `LSTMClassifier`, `GRUClassifier` or
            `RNNClassifier`.
        head: torch's name of the Linear, such as `'fc'`.

    Returns:
        A dict of writable NumPy arrays under `lstm.*`, `gru.*` or `rnn.*`,
        `classifer.weight` (num_classes, D·P) and `classifer.bias` (num_classes,), or
        what `head` is instead;
        with `pooling='attention'` also `attention.weight` (D·P, D·P),
        `attention.bias` (D·P,) and `query.weight` (1, D·P).

    Raises:
        ValueError: missing, unexpected or misshaped entries, listed.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from flax_lstm import LSTMClassifier, classifier_params_to_torch
        >>> variables = LSTMClassifier().init(jax.random.key(0), jnp.ones((1, 28, 28)))
        >>> classifier_params_to_torch(variables['params'])['classifer.weight'].shape
        (10, 128)
    """
    leaves = flat(params)
    cell = _first_cell(leaves, "/")
    beside = {path for path in leaves if not path.startswith(f"{cell}/")}
    has_attention = any(path.startswith("attention/") for path in beside)
    names = _head_named(head) | (_ATTENTION if has_attention else {})
    require_names("params", names.values(), beside)
    of_stack = behind(f"{cell}/", leaves)
    stack = stack_to_torch(of_stack, f"{cell}/")
    width = StackLayout.named_in(stack).output_width(stack, cell)
    classes = leaves["head/kernel"].shape[1:]
    shapes = {
        "head/kernel": (width, *classes),
        "head/bias": classes,
        "attention/projection/kernel": (width, width),
        "attention/projection/bias": (width,),
        "attention/query/kernel": (width, 1),
    }
    require_shapes(
        "params", {path: (shapes[path], leaves[path].shape) for path in names.values()}
    )
    require_floating("params", {path: leaves[path] for path in names.values()})
    weights = {f"{cell}.{name}": array for name, array in stack.items()}
    return weights | {name: writable(leaves[path].T) for name, path in names.items()}


def _head_named(head: str) -> dict[str, str]:
    if not isinstance(head, str):
        raise TypeError(f"head: expected a string, got a {type(head).__name__}")
    return {f"{head}.weight": "head/kernel", f"{head}.bias": "head/bias"}


def _require_head(head: str, names: Mapping[str, str], tensors: Any) -> None:
    """If a Linear of another name is the only one, the error says which."""
    others = {name.rpartition(".")[0] for name in tensors if name not in names}
    others -= set(LAYOUTS)
    if f"{head}.weight" not in tensors and len(others) == 1:
        raise ValueError(
            f"head: expected {others.pop()!r}, the name of the Linear in the "
            f"state_dict, got {head!r}"
        )


def _first_cell(names: Any, separator: str) -> str:
    """The stack's name, which is that of its cell; an LSTM's if there is none."""
    first = {name.partition(separator)[0] for name in names}
    return next((cell for cell in LAYOUTS if cell in first), "lstm")
