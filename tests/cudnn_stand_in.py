"""cuDNN's two calls by JAX's own reference, where there is no NVIDIA GPU.

What stands around the calls (parameters, layers, directions, lengths, dropout,
derivatives, errors) is tested with it everywhere; on a GPU the same tests run cuDNN
itself.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import rnn
from kinds import trace_layers_anew

from flax_lstm import _cudnn_lstm, _cudnn_primitives


def has_gpu():
    return any(device.platform == "gpu" for device in jax.devices())


def stand_in_for_cudnn(monkeypatch):
    """Leaves cuDNN where it is."""
    trace_layers_anew(monkeypatch)
    if not has_gpu():
        monkeypatch.setattr(_cudnn_primitives, "rnn", Reference)
        monkeypatch.setattr(_cudnn_lstm, "forward_p", _on_cpu())
        monkeypatch.setattr(_cudnn_lstm, "_require_gpu", lambda: None)


@functools.cache
def _on_cpu():
    return _cudnn_primitives.primitive_for("cpu")


class Reference:
    """`lstm_fwd` and `lstm_bwd` of `jax.experimental.rnn`, and cuDNN's limits."""

    @staticmethod
    def lstm_fwd(x, h_0, c_0, w, seq_lengths, **sizes):
        *_, precision = sizes = tuple(sizes.values())
        assert all(array.dtype == jnp.float32 for array in (x, h_0, c_0, w))
        assert precision in (jax.lax.Precision.HIGH, jax.lax.Precision.HIGHEST)
        results = _run(x, h_0, c_0, w, seq_lengths, sizes)
        y, *_ = results
        return results, (x, h_0, c_0, w, seq_lengths, y, _kept(y))

    @staticmethod
    def lstm_bwd(*sizes_and_arrays):
        *sizes, residuals, gradients = sizes_and_arrays
        *floats, seq_lengths, y, kept = residuals
        # What did not come from the call forward is of no use.
        fails = jnp.where(kept == _kept(y), 0.0, jnp.nan).sum()

        def run(*floats):
            return _run(*floats, seq_lengths, sizes)

        _, back = jax.vjp(run, *floats)
        of_floats = [array + fails for array in back(tuple(gradients))]
        return *of_floats, jnp.zeros_like(seq_lengths)


def _kept(y):
    """Of the kind that cuDNN keeps: read by the call backward."""
    return jnp.concatenate([jnp.zeros(3), y.ravel()])


def _run(x, h_0, c_0, w, seq_lengths, sizes):
    input_size, hidden_size, num_layers, dropout, bidirectional, _ = sizes
    weights = rnn.unpack_lstm_weights(
        w, input_size, hidden_size, num_layers, bidirectional
    )
    results = rnn.lstm_ref(
        *(x, h_0, c_0, *weights, seq_lengths),
        *(input_size, hidden_size, num_layers, dropout, bidirectional),
    )
    # cuDNN's call fails for any row of length 0.
    fails = jnp.where((seq_lengths < 1).any(), jnp.nan, 0.0)
    return tuple(array + fails for array in results)
