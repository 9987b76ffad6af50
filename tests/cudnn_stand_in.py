"""cuDNN's two calls by JAX's own reference, where there is no NVIDIA GPU.

What stands around the calls (parameters, layers, directions, lengths, dropout,
errors) is tested with it everywhere; on a GPU the same tests run cuDNN itself.
"""

import jax
import jax.numpy as jnp
from jax.experimental import rnn

from flax_lstm import _cudnn_lstm


def has_gpu():
    return any(device.platform == "gpu" for device in jax.devices())


def stand_in_for_cudnn(monkeypatch):
    """Does nothing where cuDNN is."""
    if not has_gpu():
        monkeypatch.setattr(_cudnn_lstm, "rnn", Reference)
        monkeypatch.setattr(_cudnn_lstm, "_require_gpu", lambda: None)


class Reference:
    """`lstm_fwd` and `lstm_bwd` of `jax.experimental.rnn`, and cuDNN's limits."""

    @staticmethod
    def lstm_fwd(
        x,
        h_0,
        c_0,
        w,
        seq_lengths,
        input_size,
        hidden_size,
        num_layers,
        dropout,
        bidirectional,
        precision,
    ):
        def run(x, h_0, c_0, w):
            weights = rnn.unpack_lstm_weights(
                w, input_size, hidden_size, num_layers, bidirectional
            )
            return rnn.lstm_ref(
                x,
                h_0,
                c_0,
                *weights,
                seq_lengths,
                input_size,
                hidden_size,
                num_layers,
                dropout,
                bidirectional,
            )

        assert all(array.dtype == jnp.float32 for array in (x, h_0, c_0, w))
        assert precision in (jax.lax.Precision.HIGH, jax.lax.Precision.HIGHEST)
        results, back = jax.vjp(run, x, h_0, c_0, w)
        # cuDNN's call fails for any row of length 0.
        fails = jnp.where((seq_lengths < 1).any(), jnp.nan, 0.0)
        return tuple(array + fails for array in results), (back, seq_lengths)

    @staticmethod
    def lstm_bwd(*sizes_and_arrays):
        (back, lengths), gradients = sizes_and_arrays[-2:]
        return *back(gradients), jnp.zeros_like(lengths)
