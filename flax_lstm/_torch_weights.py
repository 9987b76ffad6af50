"""Weights from torch's recurrent modules and back, without torch."""

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

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
    cell_of_params,
    cell_of_weights,
    params_layers,
    params_shapes,
    prefixes_in,
)


def params_from_torch(
    state_dict: Mapping[str, Any] | str | os.PathLike[str], prefix: str = ""
) -> dict[str, Any]:
    """Parameters of a stack from the weights of a torch.nn.LSTM, GRU or RNN.

    The kind of cell, layers, directions, bias, projection and all sizes are read off
    the keys and shapes: `weight_hh` is (4·H, H) in an LSTM, (3·H, H) in a GRU and
    (H, H) in an RNN, and only an LSTM has a projection. `b_ih + b_hh` becomes the
    one bias of a gate; the gate n of a GRU keeps both. The sum is rounded to the dtype
    of `state_dict`: to compute in float32 with bfloat16 or float16 weights, convert
    the state_dict to float32 first. It is right for weights alone: a gradient, or an
    optimizer's moments, which both of torch's biases have alike, would be doubled.

    Args:
        state_dict: a mapping of torch's names to torch tensors or arrays, or the
            path of a ``.safetensors`` file. Nothing is ever unpickled.
        prefix: the prefix of the module's names, such as `'encoder.lstm.'`; keys
            without it are ignored.

    Returns:
        What goes under `'params'` of a `StackedLSTM`, `StackedGRU` or `StackedRNN`,
        as arrays in the dtypes of `state_dict` (as JAX holds them: float64 becomes
        float32 unless `jax_enable_x64` is set).

    Raises:
        OSError: there is no such file (FileNotFoundError), or it can't be read.
        ValueError: keys that are missing, unexpected or of the wrong shape (the message
            lists them); a prefix that the module's names don't have; a file that is not
            a safetensors file.
        TypeError: neither a mapping nor a path, weights that are not floating-point or
            have a dtype that NumPy lacks.

    Example:
        >>> import jax.numpy as jnp, numpy as np
        >>> from flax_lstm import StackedLSTM, params_from_torch
        >>> weights = {'weight_ih_l0': np.ones((16, 3)), 'bias_ih_l0': np.ones(16),
        ...            'weight_hh_l0': np.ones((16, 4)), 'bias_hh_l0': np.ones(16)}
        >>> weights = {k: v.astype(np.float32) for k, v in weights.items()}
        >>> params = params_from_torch(weights)
        >>> lstm = StackedLSTM(input_size=3, hidden_size=4)
        >>> output, _ = lstm.apply({'params': params}, jnp.ones((5, 2, 3)))

    Source: the attributes in
    https://docs.pytorch.org/docs/stable/generated/torch.nn.LSTM.html
    """
    tensors = read_state_dict(state_dict)
    _require_prefix(prefix, tensors)
    return as_jax(stack_from_torch(behind(prefix, tensors), prefix))


def params_to_torch(
    params: Mapping[str, Any], prefix: str = ""
) -> dict[str, np.ndarray]:
    """Weights for a torch.nn.LSTM, GRU or RNN from the parameters of a stack.

    The inverse of `params_from_torch`: a round trip from Flax to torch and back returns
    identical values. A bias that stands for the sum of torch's two is written to
    `bias_ih`, and `bias_hh` is zero.

    Args:
        params: the tree under `'params'` of a `StackedLSTM`, `StackedGRU` or
            `StackedRNN`; its names tell which.
        prefix: what to put before torch's names.

    Returns:
        A dict of writable NumPy arrays in the dtype of `params`, for
        `lstm.load_state_dict({k: torch.from_numpy(v) for k, v in weights.items()})`
        in torch (bfloat16 is unknown to NumPy, and so to `torch.from_numpy`: cast
        first).

    Raises:
        ValueError: entries that are missing, unexpected or of the wrong shape (the
            message lists them).
        TypeError: not a mapping, an entry that is not an array, or a prefix that is
            not a string.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from flax_lstm import StackedLSTM, params_to_torch
        >>> lstm = StackedLSTM(input_size=3, hidden_size=4)
        >>> variables = lstm.init(jax.random.key(0), jnp.ones((5, 2, 3)))
        >>> params_to_torch(variables['params'])['weight_ih_l0'].shape
        (16, 3)

    Source: as `params_from_torch`.
    """
    require_string("prefix", prefix)
    leaves = flat(params)
    _require_no_parent(leaves)
    weights = stack_to_torch(leaves)
    return {prefix + name: array for name, array in weights.items()}


def _require_prefix(prefix: Any, tensors: Mapping[str, Any]) -> None:
    """If the module's names have another prefix, the error says which."""
    require_string("prefix", prefix)
    found = prefixes_in(tensors)
    if found and prefix not in found:
        raise ValueError(
            f"prefix: expected {' or '.join(map(repr, found))}, the prefix "
            f"that the state_dict gives weight_ih_l0, got {prefix!r}"
        )


def _require_no_cell(weights: Mapping[str, Any], prefix: str) -> None:
    """torch's single cells name their weights without a layer."""
    if {"weight_ih", "weight_hh"} <= weights.keys():
        raise ValueError(
            f"state_dict: expected names such as {prefix}weight_ih_l0, got those of a "
            f"single cell, {prefix}weight_ih; add _l0 to each"
        )


def _require_no_parent(leaves: Mapping[str, Any]) -> None:
    """If the stack's entries are nested in another tree, the error says where."""
    if any(path.startswith("layer_0/") for path in leaves):
        return
    stacks = sorted({p.partition("/layer_0/")[0] for p in leaves if "/layer_0/" in p})
    if stacks:
        choices = " or ".join(
            "".join(f"[{name!r}]" for name in stack.split("/")) for stack in stacks
        )
        whole = {"head/kernel", "head/bias"} & leaves.keys()
        hint = ", or all of it to classifier_params_to_torch" if whole else ""
        raise ValueError(
            f"params: expected those of a stack alone, got them nested in others; pass "
            f"params{choices}{hint}"
        )


def stack_from_torch(
    weights: Mapping[str, np.ndarray], prefix: str, cell: str | None = None
) -> dict[str, Any]:
    """The tree of a stack, as NumPy arrays.

    Args:
        weights: torch's, without their prefix.
        prefix: for messages.
        cell: a key of `LAYOUTS`; None to infer it from the weights.
    """
    stack = StackLayout.named_in(weights)
    expected = {prefix + name for name in stack.names()}
    _require_no_cell(weights, prefix)
    require_names("state_dict", expected, [prefix + name for name in weights])
    require_one_member("state_dict", weights)
    cell = cell or cell_of_weights(weights, prefix)
    shapes = stack.shapes(weights, cell)
    require_shapes(
        "state_dict",
        {prefix + name: (shapes[name], weights[name].shape) for name in sorted(shapes)},
    )

    require_floating("state_dict", {prefix + k: v for k, v in weights.items()})

    layout = LAYOUTS[cell]
    params: dict[str, Any] = {}
    for suffix in stack.suffixes:

        def by_gate(name, suffix=suffix):
            pieces = np.split(weights[name + suffix], len(layout.gates))
            return dict(zip(layout.gates, pieces, strict=True))

        tree: dict[str, dict[str, np.ndarray]] = {}
        for side in "ih":
            for gate, weight in by_gate(f"weight_{side}h").items():
                tree[side + gate] = {"kernel": weight.T}
        if stack.bias:
            b_ih, b_hh = by_gate("bias_ih"), by_gate("bias_hh")
            for gate in layout.gates:
                if gate in layout.apart:
                    tree["i" + gate]["bias"] = b_ih[gate]
                    tree["h" + gate]["bias"] = b_hh[gate]
                else:
                    tree[layout.summed_on + gate]["bias"] = b_ih[gate] + b_hh[gate]
        if stack.projection:
            tree["hr"] = {"kernel": weights["weight_hr" + suffix].T}
        params[suffix.replace("_l", "layer_", 1)] = tree
    return params


def stack_to_torch(
    leaves: Mapping[str, np.ndarray], within: str = ""
) -> dict[str, np.ndarray]:
    """A stack's weights in torch's layout, from its leaves, which are keyed by path.

    Messages show the paths with `within` in front.
    """
    cell = cell_of_params({k.partition("/")[2] for k in leaves})
    layout = LAYOUTS[cell]
    has_bias = any(k.endswith("/bias") for k in leaves) or not leaves
    has_projection = cell == "lstm" and any(k.endswith("/hr/kernel") for k in leaves)
    layers = params_layers(leaves)
    names = layout.names(bias=has_bias, projection=has_projection)
    expected = {f"{within}{layer}/{k}" for layer in layers for k in names}
    require_names("params", expected, [within + path for path in leaves])
    require_one_member("params", leaves)
    shapes = params_shapes(leaves, cell)
    require_shapes(
        "params", {within + k: (shapes[k], leaves[k].shape) for k in sorted(leaves)}
    )
    require_floating("params", {within + k: v for k, v in leaves.items()})

    weights = {}
    for layer in layers:
        suffix = layer.replace("layer_", "_l", 1)

        def stacked(modules, kind, layer=layer):
            """The gates' arrays, each transposed, concatenated along the first axis."""
            paths = [f"{layer}/{module}/{kind}" for module in modules]
            return writable(np.concatenate([leaves[path].T for path in paths]))

        for side in "ih":
            modules = [side + gate for gate in layout.gates]
            weights[f"weight_{side}h{suffix}"] = stacked(modules, "kernel")
        if has_bias:
            names_by_gate = [layout.bias_names(gate) for gate in layout.gates]
            b_ih = stacked([names[0] for names in names_by_gate], "bias")
            b_hh = stacked([names[-1] for names in names_by_gate], "bias")
            # Adding negative zero leaves every value as it is, -0.0 too.
            for gate, rows in zip(
                layout.gates, np.split(b_hh, len(layout.gates)), strict=True
            ):
                if gate not in layout.apart:
                    rows[:] = -0.0
            weights["bias_ih" + suffix], weights["bias_hh" + suffix] = b_ih, b_hh
        if has_projection:
            weights["weight_hr" + suffix] = writable(leaves[f"{layer}/hr/kernel"].T)
    return weights
