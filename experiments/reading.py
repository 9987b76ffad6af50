"""How a classifier reads one image: its gates, cell states and answers, row by row."""

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from experiments.errors import RunError
from experiments.restored import RestoredClassifier
from flax_lstm import LSTMClassifier
from flax_lstm._lstm_cell import LSTMCell


@dataclasses.dataclass(frozen=True)
class LayerTrace:
    """One layer, in one direction, over the T rows of an image.

    `i`, `f`, `o` (T, H) are the input, forget and output gates in [0, 1], `c` (T, H)
    is the cell state after each row. A reverse direction has read the rows below t
    when it comes to row t. `name` is that of its parameters, `layer_0`.
    """

    name: str
    i: np.ndarray
    f: np.ndarray
    o: np.ndarray
    c: np.ndarray

    def units_by_peak(self) -> np.ndarray:
        """The units (H,), those first whose cell state is largest in an early row."""
        return np.argsort(np.abs(self.c).argmax(axis=0), kind="stable")


@dataclasses.dataclass(frozen=True)
class Reading:
    """`layers`, the lowest first, and `probabilities` (T, num_classes).

    Row t of `probabilities` is the classifier's answer to rows 0 … t alone, so the
    last row is its answer to the whole image.
    """

    layers: tuple[LayerTrace, ...]
    probabilities: np.ndarray

    @property
    def answer(self) -> int:
        return int(np.argmax(self.probabilities[-1]))


def require_rows_and_lstm(classifier: RestoredClassifier) -> None:
    """Raises a RunError if the model has no such gates, or its steps are not rows."""
    if classifier.sequence != "rows":
        raise RunError(
            f"--workdir: expected a run with --sequence=rows, whose rows are shown, "
            f"got {classifier.sequence}"
        )
    _require_lstm(classifier.model)


def _require_lstm(model: Any) -> None:
    if not isinstance(model, LSTMClassifier):
        raise RunError(
            f"--workdir: expected a run of an LSTM, whose gates are shown, got a "
            f"{type(model).__name__}"
        )


def read(model: Any, variables: Any, image: np.ndarray, white: int) -> Reading:
    """Reads `image` (T, I), as the dataset has it, with the model's own parameters.

    Returns:
        A `Reading` of float32 arrays.

    Raises:
        RunError: `model` is no LSTM.

    Example:
        >>> import jax, numpy as np
        >>> from experiments.reading import read
        >>> model = LSTMClassifier(hidden_size=4)
        >>> image = np.zeros((28, 28), np.uint8)
        >>> variables = model.init(jax.random.key(0), image[None] / 255)
        >>> reading = read(model, variables, image, white=255)
        >>> [layer.name for layer in reading.layers], reading.layers[0].c.shape
        (['layer_0', 'layer_1'], (28, 4))
        >>> reading.probabilities.shape
        (28, 10)
    """
    _require_lstm(model)
    inputs = jnp.asarray(image, jnp.float32) / white
    layers, probabilities = jax.device_get(_read(model, variables["params"], inputs))
    return Reading(
        tuple(LayerTrace(name, **trace) for name, trace in layers.items()),
        probabilities,
    )


@functools.partial(jax.jit, static_argnames="model")
def _read(model: LSTMClassifier, params: Any, inputs: jax.Array):
    rows = len(inputs)
    # The first 1, 2, … rows as a batch of sequences of different lengths: what "the
    # answer so far" means for every direction and head.
    logits: Any = model.apply(
        {"params": params},
        jnp.broadcast_to(inputs, (rows, *inputs.shape)),
        seq_lengths=jnp.arange(1, rows + 1),
    )
    probabilities = jax.nn.softmax(logits.astype(jnp.float32))
    return _traces(model, params["lstm"], inputs), probabilities


def _traces(model: LSTMClassifier, params: Any, x: jax.Array) -> dict[str, Any]:
    dtype = model.dtype or jnp.result_type(x, model.param_dtype)
    cell = LSTMCell(
        model.hidden_size,
        use_bias=model.bias,
        proj_size=model.proj_size,
        dtype=dtype,
        param_dtype=model.param_dtype,
    )
    directions = {"": False, "_reverse": True} if model.bidirectional else {"": False}
    traces = {}
    for layer in range(model.num_layers):
        outputs = []
        for suffix, reverse in directions.items():
            name = f"layer_{layer}{suffix}"
            traces[name], output = _trace(cell, params[name], x.astype(dtype), reverse)
            outputs.append(output)
        x = jnp.concatenate(outputs, axis=-1)
    return traces


def _trace(cell: LSTMCell, params: Any, x: jax.Array, reverse: bool):
    """One layer's own cell over `x` (T, I), and what its gates were."""

    def step(carry, row):
        ((c, h), output), seen = cell.apply(
            {"params": params},
            carry,
            row,
            capture_intermediates=lambda module, _: isinstance(module, nn.Dense),
            mutable="intermediates",
        )
        products = {
            name: dense["__call__"][0] for name, dense in seen["intermediates"].items()
        }
        gates = {
            gate: cell.gate_fn(products[f"i{gate}"] + products[f"h{gate}"])
            for gate in "ifo"
        }
        return (c, h), ({**gates, "c": c}, output)

    h_size, c_size = cell.state_sizes(cell.features, cell.proj_size)
    h_dtype, c_dtype = cell.state_dtypes(x.dtype)
    start = jnp.zeros(c_size, c_dtype), jnp.zeros(h_size, h_dtype)
    _, (trace, output) = jax.lax.scan(step, start, x, reverse=reverse)
    return jax.tree.map(lambda a: a.astype(jnp.float32), trace), output
