"""The kinds of stack, each with torch's class of the same meaning."""

from collections.abc import Callable
from typing import NamedTuple

import jax

from flax_lstm import (
    StackedGRU,
    StackedLSTM,
    StackedRNN,
    _classifier,
    _fused_lstm,
    _fused_products,
    _stack,
)


class Kind(NamedTuple):
    """A stack with the options that make it this kind, in torch and here."""

    stack: type
    in_torch: str  # Its name in torch.nn; torch itself is not there in every run.
    options: dict

    def build(self, *args, **kwargs):
        return self.stack(*args, **self.options, **kwargs)

    def build_in_torch(self, torch, *args, **kwargs):
        return getattr(torch.nn, self.in_torch)(*args, **self.options, **kwargs)

    @property
    def state_names(self):
        return self.stack.cell_class.state_names

    @property
    def implementations(self):
        """Those for all dtypes and options; 'auto' is one of the others."""
        return sorted(set(self.stack.implementations) - {"auto", "native"})


KINDS = {
    "lstm": Kind(StackedLSTM, "LSTM", {}),
    "gru": Kind(StackedGRU, "GRU", {}),
    "rnn_tanh": Kind(StackedRNN, "RNN", {"nonlinearity": "tanh"}),
    "rnn_relu": Kind(StackedRNN, "RNN", {"nonlinearity": "relu"}),
}


def lay_out_as_if_large(monkeypatch):
    """Has products laid out as with many units, whatever their number."""
    trace_anew(monkeypatch)
    monkeypatch.setattr(_fused_products, "_JOINED_BYTES", 0)


def trace_layers_anew(monkeypatch):
    """Has no stack take what it was traced to before a test changed what it reads."""
    for module in (_stack, _classifier):
        monkeypatch.setattr(module, "compiled_once", lambda run, **_: run)


def trace_anew(monkeypatch):
    """The same of what the fused loops read."""
    trace_layers_anew(monkeypatch)
    monkeypatch.setattr(_fused_lstm, "jitted_lstm_layer", _fused_lstm.lstm_layer)


def lay_out_as_elsewhere(monkeypatch, unroll=2):
    """Has the fused loops be those of other platforms than a CPU.

    With so few steps one after another that the tests' short sequences have a loop
    and a rest. Returns a list that grows with every loop made so.
    """
    trace_anew(monkeypatch)
    chosen = []

    def elsewhere(*arguments, cpu, default):
        chosen.append(default)
        return default(*arguments)

    monkeypatch.setattr(_fused_products, "_UNROLL", (unroll,))
    monkeypatch.setattr(jax.lax, "platform_dependent", elsewhere)
    return chosen


class Variant(NamedTuple):
    """A kind of stack, and how it is run over time.

    `lay_out` is given pytest's `monkeypatch`.
    """

    kind: str
    recurrence: dict
    lay_out: Callable | None = None

    def build(self, *args, **options):
        return KINDS[self.kind].build(*args, **options, **self.recurrence)

    def projection(self, size):
        """The option for a kind that has it, none for the others."""
        return {"proj_size": size} if self.kind == "lstm" else {}


def packed(states):
    """A tuple of states as torch passes them: one alone is no tuple."""
    return states if len(states) > 1 else states[0]


def unpacked(state):
    """The inverse of `packed`."""
    return tuple(state) if isinstance(state, (tuple, list)) else (state,)
