"""The networks that are looked at: one layer each, from different first weights."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.nn.initializers import orthogonal

from experiments.gradient_flow.recall import SYMBOLS
from flax_lstm import (
    GRUClassifier,
    LSTMClassifier,
    RNNClassifier,
    SequenceClassifier,
    StackedGRU,
    StackedLSTM,
    StackedRNN,
)

HIDDEN_SIZE = 32
_GAINS = (0.5, 1.0, 1.5, 2.0, 3.0)
_FORGET_BIASES = (0.0, 1.0, 2.0, 4.0)
# The modules that hold the bias of LSTM's f and of GRU's z.
_FORGET_GATE, _UPDATE_GATE = "hf", "iz"


@dataclasses.dataclass(frozen=True)
class Cell:
    """A kind of cell: its stack and its classifier."""

    stack_class: Callable[..., Any]
    classifier_class: Callable[..., SequenceClassifier]
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def stack(self) -> Any:
        """One layer, batch first."""
        return self.stack_class(SYMBOLS, HIDDEN_SIZE, batch_first=True, **self.options)

    def classifier(self, pooling: str) -> SequenceClassifier:
        """The same layer below a pooling and a dense head."""
        return self.classifier_class(
            num_classes=SYMBOLS,
            input_size=SYMBOLS,
            hidden_size=HIDDEN_SIZE,
            num_layers=1,
            pooling=pooling,
            **self.options,
        )


CELLS: Mapping[str, Cell] = {
    "RNN, tanh": Cell(StackedRNN, RNNClassifier),
    "RNN, ReLU": Cell(StackedRNN, RNNClassifier, {"nonlinearity": "relu"}),
    "GRU": Cell(StackedGRU, GRUClassifier),
    "LSTM": Cell(StackedLSTM, LSTMClassifier),
}


@dataclasses.dataclass(frozen=True)
class FirstWeights:
    """How a stack's weights are drawn, if not as torch draws them.

    Args:
        gain: recurrent weights are orthogonal matrices times this, so that all
            their singular values are `gain`; None for torch's U(-1/√H, 1/√H).
        opened: module whose bias is raised by `offset`.
    """

    gain: float | None = None
    opened: str | None = None
    offset: float = 0.0

    def of(self, drawn: Any, seed: int) -> Any:
        """`drawn`, a stack's parameters as torch draws them, changed accordingly."""
        layer = dict(drawn["layer_0"])
        for number, name in enumerate(sorted(layer)):
            # Modules are called by what they read: i… the input, h… the hidden state.
            if self.gain is not None and name.startswith("h"):
                key = jax.random.fold_in(jax.random.key(seed), number)
                kernel = orthogonal(self.gain)(key, (HIDDEN_SIZE, HIDDEN_SIZE))
                layer[name] = {**layer[name], "kernel": kernel}
            if name == self.opened:
                bias = layer[name]["bias"] + self.offset
                layer[name] = {**layer[name], "bias": bias}
        return {"layer_0": layer}


@dataclasses.dataclass(frozen=True)
class Network:
    """A classifier, and where its training starts."""

    cell: Cell
    first: FirstWeights = FirstWeights()
    pooling: str = "last"

    @property
    def model(self) -> SequenceClassifier:
        return self.cell.classifier(self.pooling)

    def first_params(self, seed: int) -> Any:
        params = drawn(self.model, seed)
        stack = self.model.cell
        return {**params, stack: self.first.of(params[stack], seed)}


def drawn(module: Any, seed: int) -> Any:
    """The parameters of a stack or classifier, as torch draws them."""
    x = jnp.zeros((1, 1, SYMBOLS))
    return jax.jit(module.init)(jax.random.key(seed), x)["params"]


_RNN, _RELU, _GRU, _LSTM = CELLS.values()
SCALED: Mapping[str, tuple[Cell, Mapping[str, FirstWeights]]] = {
    **{
        name: (cell, {f"{gain:g}": FirstWeights(gain=gain) for gain in _GAINS})
        for name, cell in CELLS.items()
    },
    "LSTM, by forget bias": (
        _LSTM,
        {
            f"{bias:g}": FirstWeights(opened=_FORGET_GATE, offset=bias)
            for bias in _FORGET_BIASES
        },
    ),
}
TRAINED: Mapping[str, Network] = {
    "RNN, tanh": Network(_RNN),
    "RNN, tanh, gain 1": Network(_RNN, FirstWeights(gain=1.0)),
    "RNN, ReLU": Network(_RELU),
    "RNN, ReLU, gain 2": Network(_RELU, FirstWeights(gain=2.0)),
    "GRU": Network(_GRU),
    "GRU, z + 4": Network(_GRU, FirstWeights(opened=_UPDATE_GATE, offset=4.0)),
    "LSTM": Network(_LSTM),
    "LSTM, f + 4": Network(_LSTM, FirstWeights(opened=_FORGET_GATE, offset=4.0)),
}
POOLED: Mapping[str, Network] = {
    f"{name}, {pooling}": Network(CELLS[name], pooling=pooling)
    for name in ("RNN, tanh", "LSTM")
    for pooling in ("last", "mean", "attention")
}
