"""Weights from torch's modules and back, without torch.

A torch weight stacks its four gates (i, f, g, o) along its first axis and is
transposed against a Flax kernel; a torch layer has two biases where this package
has one, their sum.
"""

import os
import re
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

GATES = "ifgo"
_LSTM_KEY = re.compile(
    r"(weight_ih|weight_hh|weight_hr|bias_ih|bias_hh)_l(0|[1-9]\d*)(_reverse)?"
)
# The study notes' classifier has attributes of these names, spelt like this.
_NOTES_LSTM = "lstm."
_NOTES_HEAD = "classifer."


def params_from_torch(state_dict: Any, prefix: str = "") -> dict[str, Any]:
    """Parameters of a `StackedLSTM` from the weights of a torch.nn.LSTM.

    Layers, directions, bias, projection and all sizes are read off the keys and
    shapes. `b_ih + b_hh` becomes the one bias of a gate.

    Args:
        state_dict: a mapping of torch's names to torch tensors or arrays, or the
            path of a `.safetensors` file. Nothing is ever unpickled.
        prefix: what stands before the LSTM's own names, such as `'encoder.lstm.'`;
            keys without it are left aside.

    Returns:
        What goes under `'params'`: arrays in the dtypes of `state_dict` (as JAX
        holds them: float64 becomes float32 unless `jax_enable_x64` is set).

    Raises:
        ValueError: missing, unexpected or misshaped keys, listed; a file that is no
            safetensors file.
        TypeError: something else than a mapping or a path.

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
    tensors = _read(state_dict)
    return _as_jax(_lstm_from_torch(_behind(prefix, tensors), prefix))


def params_to_torch(
    params: Mapping[str, Any], prefix: str = ""
) -> dict[str, np.ndarray]:
    """Weights for a torch.nn.LSTM from the parameters of a `StackedLSTM`.

    The inverse of `params_from_torch`: Flax to torch to Flax gives the very same
    numbers. Each bias goes into `bias_ih`, and `bias_hh` becomes zero.

    Args:
        params: what stands under `'params'`.
        prefix: what to put before torch's names.

    Returns:
        A dict of writable NumPy arrays in the dtype of `params`. In torch:
        `lstm.load_state_dict({k: torch.from_numpy(v) for k, v in weights.items()})`
        (bfloat16 is unknown to NumPy and so to `torch.from_numpy`: cast first).

    Raises:
        ValueError: missing, unexpected or misshaped entries, listed.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from flax_lstm import StackedLSTM, params_to_torch
        >>> lstm = StackedLSTM(input_size=3, hidden_size=4)
        >>> variables = lstm.init(jax.random.key(0), jnp.ones((5, 2, 3)))
        >>> params_to_torch(variables['params'])['weight_ih_l0'].shape
        (16, 3)
    """
    weights = _lstm_to_torch(params)
    _lstm_from_torch(weights, "")  # Shapes that torch would refuse are refused here.
    return {prefix + name: array for name, array in weights.items()}


def classifier_params_from_torch(state_dict: Any) -> dict[str, Any]:
    """Parameters of an `LSTMClassifier` from the study notes' torch classifier.

    Args:
        state_dict: a mapping or the path of a `.safetensors` file, with `lstm.*`,
            `classifer.weight` and `classifer.bias` (the notes spell it so).

    Returns:
        What goes under `'params'`, with the entries `lstm` and `head`.

    Raises:
        ValueError, TypeError: as `params_from_torch`.

    Example:
        >>> from flax_lstm import classifier_params_from_torch
        >>> classifier_params_from_torch({})
        Traceback (most recent call last):
            ...
        ValueError: state_dict: missing classifer.bias, classifer.weight, ...
    """
    tensors = _read(state_dict)
    lstm = _behind(_NOTES_LSTM, tensors)
    layers = _Layers.named_in(lstm)
    expected = {_NOTES_LSTM + name for name in layers.names()}
    expected |= {_NOTES_HEAD + "weight", _NOTES_HEAD + "bias"}
    _require_names("state_dict", expected, tensors)

    params = {"lstm": _lstm_from_torch(lstm, _NOTES_LSTM)}
    weight, bias = tensors[_NOTES_HEAD + "weight"], tensors[_NOTES_HEAD + "bias"]
    width = layers.output_width(lstm)
    classes = weight.shape[0] if weight.ndim else 0
    _require_shapes(
        "state_dict",
        {
            _NOTES_HEAD + "weight": ((classes, width), weight.shape),
            _NOTES_HEAD + "bias": ((classes,), bias.shape),
        },
    )
    params["head"] = {"kernel": weight.T, "bias": bias}
    return _as_jax(params)


def classifier_params_to_torch(params: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Weights for the study notes' torch classifier; see `params_to_torch`.

    Args:
        params: the `'params'` of an `LSTMClassifier`.

    Returns:
        A dict of writable NumPy arrays: `lstm.*`, `classifer.weight` (num_classes,
        D·P) and `classifer.bias` (num_classes,).

    Raises:
        ValueError: missing, unexpected or misshaped entries, listed.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from flax_lstm import LSTMClassifier, classifier_params_to_torch
        >>> variables = LSTMClassifier().init(jax.random.key(0), jnp.ones((1, 28, 28)))
        >>> classifier_params_to_torch(variables['params'])['classifer.weight'].shape
        (10, 128)
    """
    flat = _flat(params)
    head = {k for k in flat if not k.startswith("lstm/")}
    _require_names("params", {"head/kernel", "head/bias"}, head)
    lstm = params.get("lstm", {})
    weights = {
        **params_to_torch(lstm, _NOTES_LSTM),
        _NOTES_HEAD + "weight": _writable(np.asarray(flat["head/kernel"]).T),
        _NOTES_HEAD + "bias": _writable(flat["head/bias"]),
    }
    classifier_params_from_torch(weights)
    return weights


class _Layers:
    """Which layers, directions, biases and projections a set of names speaks of."""

    def __init__(self, count: int, reverse: bool, bias: bool, projection: bool):
        self.suffixes = [
            f"_l{layer}{direction}"
            for layer in range(count)
            for direction in (("", "_reverse") if reverse else ("",))
        ]
        self.directions = 2 if reverse else 1
        self.kinds = ["weight_ih", "weight_hh"]
        self.kinds += ["bias_ih", "bias_hh"] if bias else []
        self.kinds += ["weight_hr"] if projection else []

    @classmethod
    def named_in(cls, names) -> "_Layers":
        matches = [m for m in map(_LSTM_KEY.fullmatch, names) if m]
        # A stray key of a far layer must not have us list a million missing ones.
        found = {int(m[2]) for m in matches}
        count = next(k for k in range(len(found) + 1) if k not in found)
        return cls(
            count=max(count, 1),
            reverse=any(m[3] for m in matches),
            bias=any(m[1].startswith("bias") for m in matches) or not matches,
            projection=any(m[1] == "weight_hr" for m in matches),
        )

    def names(self) -> set[str]:
        return {kind + suffix for suffix in self.suffixes for kind in self.kinds}

    def sizes(self, weights) -> tuple[int, int, int]:
        """(I, H, P), read off the first layer as far as its shapes allow."""
        first = weights["weight_ih_l0"].shape
        hidden = first[0] // len(GATES) if first else 0
        input_size = first[1] if len(first) > 1 else 0
        proj = weights["weight_hr_l0"].shape[:1] if "weight_hr" in self.kinds else ()
        return input_size, hidden, proj[0] if proj else hidden

    def output_width(self, weights) -> int:
        return self.directions * self.sizes(weights)[2]

    def shapes(self, weights) -> dict[str, tuple[int, ...]]:
        input_size, hidden, width = self.sizes(weights)
        gates = len(GATES) * hidden
        below = self.directions * width
        expected: dict[str, tuple[int, ...]] = {}
        for suffix in self.suffixes:
            first = suffix in ("_l0", "_l0_reverse")
            expected["weight_ih" + suffix] = gates, input_size if first else below
            expected["weight_hh" + suffix] = gates, width
            expected["bias_ih" + suffix] = expected["bias_hh" + suffix] = (gates,)
            expected["weight_hr" + suffix] = width, hidden
        return {name: expected[name] for name in self.names()}


def _lstm_from_torch(weights: Mapping[str, np.ndarray], prefix: str) -> dict[str, Any]:
    """The tree of a StackedLSTM, as NumPy arrays; `weights` without their prefix."""
    layers = _Layers.named_in(weights)
    expected = {prefix + name for name in layers.names()}
    _require_names("state_dict", expected, [prefix + name for name in weights])
    shapes = layers.shapes(weights)
    _require_shapes(
        "state_dict",
        {prefix + name: (shapes[name], weights[name].shape) for name in sorted(shapes)},
    )

    params: dict[str, Any] = {}
    for suffix in layers.suffixes:
        cell: dict[str, dict[str, np.ndarray]] = {}
        weight_ih = np.split(weights["weight_ih" + suffix], len(GATES))
        weight_hh = np.split(weights["weight_hh" + suffix], len(GATES))
        for gate, w_i, w_h in zip(GATES, weight_ih, weight_hh, strict=True):
            cell["i" + gate] = {"kernel": w_i.T}
            cell["h" + gate] = {"kernel": w_h.T}
        if "bias_ih" in layers.kinds:
            bias = weights["bias_ih" + suffix] + weights["bias_hh" + suffix]
            for gate, b in zip(GATES, np.split(bias, len(GATES)), strict=True):
                cell["h" + gate]["bias"] = b
        if "weight_hr" in layers.kinds:
            cell["hr"] = {"kernel": weights["weight_hr" + suffix].T}
        params[suffix.replace("_l", "layer_", 1)] = cell
    return params


def _lstm_to_torch(params: Mapping[str, Any]) -> dict[str, np.ndarray]:
    flat = {k: np.asarray(v) for k, v in _flat(params).items()}
    cells = sorted({k.split("/")[0] for k in flat}) or ["layer_0"]
    has_bias = any(k.endswith("/bias") for k in flat) or not flat
    has_projection = any(k.endswith("/hr/kernel") for k in flat)
    kernels = [f"{side}{gate}/kernel" for side in "ih" for gate in GATES]
    kernels += [f"h{gate}/bias" for gate in GATES] if has_bias else []
    kernels += ["hr/kernel"] if has_projection else []
    _require_names("params", {f"{c}/{k}" for c in cells for k in kernels}, flat)

    weights = {}
    for cell in cells:
        suffix = cell.replace("layer_", "_l", 1)

        def stacked(side, kind, cell=cell):
            entries = [flat[f"{cell}/{side}{gate}/{kind}"] for gate in GATES]
            expected = entries[0].shape
            _require_shapes(
                "params",
                {
                    f"{cell}/{side}{gate}/{kind}": (expected, entry.shape)
                    for gate, entry in zip(GATES, entries, strict=True)
                },
            )
            return _writable(np.concatenate([e.T for e in entries]))

        weights["weight_ih" + suffix] = stacked("i", "kernel")
        weights["weight_hh" + suffix] = stacked("h", "kernel")
        if has_bias:
            bias = weights["bias_ih" + suffix] = stacked("h", "bias")
            # Negative zero is what addition leaves every number alone with, -0.0 too.
            weights["bias_hh" + suffix] = np.full_like(bias, -0.0)
        if has_projection:
            weights["weight_hr" + suffix] = _writable(flat[f"{cell}/hr/kernel"].T)
    return weights


def _read(source: Any) -> dict[str, np.ndarray]:
    if isinstance(source, (str, os.PathLike)):
        return _read_safetensors(os.fspath(source))
    if isinstance(source, Mapping):
        return {str(name): _as_numpy(value) for name, value in source.items()}
    raise TypeError(
        f"state_dict: expected a mapping of names to arrays, or the path of a "
        f".safetensors file, got a {type(source).__name__}"
    )


def _read_safetensors(path: str) -> dict[str, np.ndarray]:
    import safetensors
    import safetensors.numpy

    try:
        return dict(safetensors.numpy.load_file(path))
    except safetensors.SafetensorError as error:
        raise ValueError(
            f"state_dict: expected a .safetensors file, got {path} ({error}); a torch "
            f"pickle (.pt, .pth) is never read here: in torch, "
            f"safetensors.torch.save_file(torch.load(path, weights_only=True), "
            f"new_path)"
        ) from error


def _as_numpy(value: Any) -> np.ndarray:
    if hasattr(value, "detach"):  # A torch tensor, known without importing torch.
        value = value.detach().cpu()
        if str(value.dtype) == "torch.bfloat16":  # NumPy has no such dtype.
            return value.float().numpy().astype(jnp.bfloat16)
    return np.asarray(value)


def _behind(prefix: str, tensors: Mapping[str, Any]) -> dict[str, Any]:
    """The entries whose names start with `prefix`, without it."""
    return {
        k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)
    }


def _flat(params: Mapping[str, Any]) -> dict[str, Any]:
    return flatten_dict(unflatten_dict(flatten_dict(dict(params))), sep="/")


def _as_jax(params: dict[str, Any]) -> dict[str, Any]:
    return unflatten_dict({k: jnp.asarray(v) for k, v in flatten_dict(params).items()})


def _writable(array: Any) -> np.ndarray:
    """A C-contiguous copy, which torch.from_numpy takes without a warning."""
    return np.array(array, order="C", copy=True)


def _require_names(argument: str, expected, got) -> None:
    missing = sorted(set(expected) - set(got))
    unexpected = sorted(set(got) - set(expected))
    parts = []
    if missing:
        parts.append("missing " + ", ".join(missing))
    if unexpected:
        parts.append("unexpected " + ", ".join(unexpected))
    if parts:
        raise ValueError(f"{argument}: {'; '.join(parts)}")


def _require_shapes(argument: str, shapes) -> None:
    wrong = [
        f"{name} expected {expected}, got {tuple(got)}"
        for name, (expected, got) in shapes.items()
        if tuple(expected) != tuple(got)
    ]
    if wrong:
        raise ValueError(f"{argument}: wrong shapes: {'; '.join(wrong)}")
