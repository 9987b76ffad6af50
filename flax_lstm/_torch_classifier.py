"""Weights from a torch classifier (a stack and a Linear), and back."""

import itertools
import os
from collections.abc import Collection, Mapping
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
    require_one_member,
    require_shapes,
    require_string,
    writable,
)
from flax_lstm._torch_layout import (
    LAYOUTS,
    StackLayout,
    cell_of_weights,
    prefixes_in,
)
from flax_lstm._torch_weights import stack_from_torch, stack_to_torch

# torch's names of the layers besides the stack and the head, and ours.
_ATTENTION = {
    "attention.weight": "attention/projection/kernel",
    "attention.bias": "attention/projection/bias",
    "query.weight": "attention/query/kernel",
}


def classifier_params_from_torch(
    state_dict: Mapping[str, Any] | str | os.PathLike[str],
    head: str | None = None,
    stack: str | None = None,
) -> dict[str, Any]:
    """Parameters of a classifier from a torch one: a stack and a torch.nn.Linear.

    The stack is a torch.nn.LSTM, or for a `GRUClassifier` or an `RNNClassifier` a
    torch.nn.GRU or torch.nn.RNN; which it is follows from the shapes, as in
    `params_from_torch`. With `pooling='attention'` there are two more torch.nn.Linear:
    `attention`, (D·P, D·P), and `query`, from D·P to 1 and without a bias, in the
    module that contains both the stack and the head.

    Args:
        state_dict: a mapping or the path of a ``.safetensors`` file, with the keys of
            these modules and no others.
        head: the name of the Linear in torch, such as `'fc'`; None to detect it.
        stack: the name of the LSTM, GRU or RNN in torch; None to detect it.

    Returns:
        What goes under `'params'`, with the entries `lstm`, `gru` or `rnn`, `head`,
        and `attention` if it is there. The bias of a head without one is zeros.

    Raises:
        ValueError, TypeError, OSError: as `params_from_torch`.

    Example:
        >>> import numpy as np
        >>> from flax_lstm import classifier_params_from_torch
        >>> weights = {'rnn.weight_ih_l0': np.ones((16, 3)),
        ...            'rnn.weight_hh_l0': np.ones((16, 4)),
        ...            'fc.weight': np.ones((2, 4)), 'fc.bias': np.ones(2)}
        >>> params = classifier_params_from_torch(weights)
        >>> sorted(params)
        ['head', 'lstm']

    Source: the attributes in
    https://docs.pytorch.org/docs/stable/generated/torch.nn.LSTM.html and
    https://docs.pytorch.org/docs/stable/generated/torch.nn.Linear.html
    """
    tensors = read_state_dict(state_dict)
    if not tensors:
        raise ValueError("state_dict: expected the weights of a classifier, got none")
    stack = _stack_named(stack, tensors)
    prefix = f"{stack}."
    weights = behind(prefix, tensors)
    layout = StackLayout.named_in(weights)
    head = _only_head(tensors, stack) if head is None else head
    names = _head_named(head)
    attention = _attention_names(stack, head)
    # A head may have the name of one of them.
    if (attention.keys() - names.keys()) & tensors.keys():
        names |= attention
    _require_head(head, names, tensors, prefix)
    expected = {prefix + name for name in layout.names()} | names.keys()
    weight, bias = f"{head}.weight", f"{head}.bias"
    if tensors.keys() == expected - {bias}:  # Of a torch.nn.Linear(bias=False).
        tensors[bias] = np.zeros(tensors[weight].shape[:1], tensors[weight].dtype)
    require_names("state_dict", expected, tensors)
    require_one_member("state_dict", tensors)

    cell = _cell_of(weights, stack)
    tree = stack_from_torch(weights, prefix, cell)
    width = layout.output_width(weights, cell)
    classes = tensors[weight].shape[:1]
    shapes = _shapes(width, classes)
    require_shapes(
        "state_dict",
        {n: (shapes[path][::-1], tensors[n].shape) for n, path in names.items()},
    )
    require_floating("state_dict", {name: tensors[name] for name in names})
    params = flatten_dict({cell: tree}, sep="/")
    params |= {path: tensors[name].T for name, path in names.items()}
    return as_jax(unflatten_dict(params, sep="/"))


def classifier_params_to_torch(
    params: Mapping[str, Any], head: str = "head", stack: str | None = None
) -> dict[str, np.ndarray]:
    """Weights for a torch classifier, a stack and a Linear; see `params_to_torch`.

    Args:
        params: the `'params'` of an `LSTMClassifier`, `GRUClassifier` or
            `RNNClassifier`.
        head: the name of the Linear in torch, such as `'fc'`.
        stack: the name of the LSTM, GRU or RNN in torch; by default `lstm`, `gru` or
            `rnn`.

    Returns:
        A dict of writable NumPy arrays. The stack's are under `lstm.`, `gru.` or
        `rnn.`; `head.weight` is (num_classes, D·P), `head.bias` (num_classes,). If
        `stack` and `head` are given, those names are used. With `pooling='attention'`
        there are also `attention.weight` (D·P, D·P), `attention.bias` (D·P,) and
        `query.weight` (1, D·P), after whatever module the names of stack and head begin
        with.

    Raises:
        ValueError: a head with the name of another module; entries that are missing,
            unexpected or of the wrong shape (the message lists them).
        TypeError: not a mapping, or an entry that is not an array.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from flax_lstm import LSTMClassifier, classifier_params_to_torch
        >>> variables = LSTMClassifier().init(jax.random.key(0), jnp.ones((1, 28, 28)))
        >>> classifier_params_to_torch(variables['params'])['head.weight'].shape
        (10, 128)

    Source: as `classifier_params_from_torch`.
    """
    leaves = flat(params)
    if stack is not None:
        require_string("stack", stack)
    cell = _first_cell(leaves, "/")
    beside = {path for path in leaves if not path.startswith(f"{cell}/")}
    has_attention = any(path.startswith("attention/") for path in beside)
    names = _head_named(head)
    others = {stack or cell}
    if has_attention:
        names |= _attention_names(stack or cell, head)
        others |= _attention_modules(stack or cell, head)
    _require_free(head, others)
    require_names("params", names.values(), beside)
    of_stack = behind(f"{cell}/", leaves)
    in_torch = stack_to_torch(of_stack, f"{cell}/")
    width = StackLayout.named_in(in_torch).output_width(in_torch, cell)
    classes = leaves["head/kernel"].shape[1:]
    shapes = _shapes(width, classes)
    require_shapes(
        "params", {path: (shapes[path], leaves[path].shape) for path in names.values()}
    )
    require_floating("params", {path: leaves[path] for path in names.values()})
    prefix = f"{stack or cell}."
    weights = {prefix + name: array for name, array in in_torch.items()}
    return weights | {name: writable(leaves[path].T) for name, path in names.items()}


def _head_named(head: str) -> dict[str, str]:
    require_string("head", head)
    return {f"{head}.weight": "head/kernel", f"{head}.bias": "head/bias"}


def _shapes(width: int, classes: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """Of the entries beside the stack. A torch.nn.Linear's weight is transposed."""
    return {
        "head/kernel": (width, *classes),
        "head/bias": classes,
        "attention/projection/kernel": (width, width),
        "attention/projection/bias": (width,),
        "attention/query/kernel": (width, 1),
    }


def _attention_names(stack: str, head: str) -> dict[str, str]:
    """The attention's weights in torch, beside the stack and the head, and here."""
    parents = [name.split(".")[:-1] for name in (stack, head)]
    pairs = zip(*parents, strict=False)
    common = itertools.takewhile(lambda pair: pair[0] == pair[1], pairs)
    prefix = "".join(f"{module}." for module, _ in common)
    return {prefix + name: path for name, path in _ATTENTION.items()}


def _attention_modules(stack: str, head: str) -> set[str]:
    return {name.rpartition(".")[0] for name in _attention_names(stack, head)}


def _require_free(head: str, others: Collection[str]) -> None:
    if head in others:
        raise ValueError(
            f"head: expected a name that no other module has in torch, got {head!r}"
        )


def _stack_named(stack: str | None, tensors: Collection[str]) -> str:
    """The name of the stack in torch; `lstm` if there is no stack."""
    prefixes = prefixes_in(tensors)
    found = [prefix.removesuffix(".") for prefix in prefixes if prefix.endswith(".")]
    if len(prefixes) > 1 or len(prefixes) > len(found):
        shown = " and ".join(repr(f"{prefix}weight_ih_l0") for prefix in prefixes)
        raise ValueError(
            f"state_dict: expected one LSTM, GRU or RNN, as a module of its own beside "
            f"a Linear, got {shown}; convert one alone, by params_from_torch with "
            f"prefix={prefixes[0]!r}"
        )
    if stack is None:
        return found[0] if found else _first_cell(tensors, ".")
    require_string("stack", stack)
    if found and stack not in found:
        raise ValueError(
            f"stack: expected {' or '.join(map(repr, found))}, the name of the LSTM, "
            f"GRU or RNN in the state_dict, got {stack!r}"
        )
    return stack


def _cell_of(weights: Mapping[str, Any], stack: str) -> str:
    """The kind of cell, by the shapes; if they fit none, by the name."""
    try:
        return cell_of_weights(weights, f"{stack}.")
    except ValueError:
        if stack not in LAYOUTS:
            raise
        return stack


def _require_head(
    head: str, names: Mapping[str, str], tensors: Any, prefix: str
) -> None:
    """If the only Linear has another name, the error says which."""
    beside = [name for name in tensors if not name.startswith((prefix, f"{head}."))]
    others = {name.rpartition(".")[0] for name in beside if name not in names}
    if f"{head}.weight" not in tensors and len(others) == 1:
        raise ValueError(
            f"head: expected {others.pop()!r}, the name of the Linear in the "
            f"state_dict, got {head!r}"
        )


def _only_head(tensors: Collection[str], stack: str) -> str:
    """The name of the one Linear besides the stack and the attention."""
    found = {
        module
        for name in tensors
        if not name.startswith(f"{stack}.")
        for module, _, kind in [name.rpartition(".")]
        if module and kind in ("weight", "bias")
    }
    heads = [
        module
        for module in found
        if found <= {module, *_attention_modules(stack, module)}
    ]
    if len(heads) != 1:
        shown = " and ".join(map(repr, sorted(found))) or "none"
        # Where it could be each of several, the others are the attention's.
        choose = "choose one with head=, or " if heads else ""
        raise ValueError(
            f"state_dict: expected one Linear and no other weights besides the stack "
            f"{stack!r}, got {shown}; {choose}convert the stack alone, by "
            f"params_from_torch with prefix='{stack}.'"
        )
    return heads[0]


def _first_cell(names: Any, separator: str) -> str:
    """The stack's name, which is that of its cell; an LSTM's if there is none."""
    first = {name.partition(separator)[0] for name in names}
    return next((cell for cell in LAYOUTS if cell in first), "lstm")
