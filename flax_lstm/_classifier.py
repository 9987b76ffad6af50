"""`LSTMClassifier`: the stack, its last output, and a dense head."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from flax_lstm import _validation as check
from flax_lstm._initializers import torch_linear
from flax_lstm._lstm import StackedLSTM
from flax_lstm._stack import warn_of_idle_dropout


class LSTMClassifier(nn.Module):
    """Classifies a sequence by a dense layer on the last output of a `StackedLSTM`.

    The defaults are the study notes' model of MNIST read row by row: 28 steps of
    28 pixels, two layers of 128 units, ten classes. For torch's
    `output[:, -1, :]`, with `seq_lengths` each row's own last output is taken (and
    zeros for a row of length 0). Axis letters as in `StackedLSTM`.

    Args:
        num_classes: number of logits.
        input_size, hidden_size, num_layers, bias, batch_first, dropout,
            bidirectional, proj_size, implementation, remat: see `StackedLSTM`.
        dtype: dtype of the computation, see `StackedLSTM`.
        param_dtype: dtype in which parameters are created.

    Parameters (under `'params'`): `lstm`, the tree of `StackedLSTM`, and
    `head/{kernel,bias}` of shapes (D·P, num_classes) and (num_classes,), drawn
    like torch.nn.Linear's from U(-1/√(D·P), 1/√(D·P)).

    Raises:
        ValueError, TypeError: an option is out of its range or of the wrong type.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from flax_lstm import LSTMClassifier
        >>> model = LSTMClassifier(num_classes=10, input_size=28, hidden_size=128,
        ...                        num_layers=2, batch_first=True)
        >>> images = jnp.zeros((5, 28, 28))
        >>> variables = model.init(jax.random.key(0), images)
        >>> model.apply(variables, images).shape
        (5, 10)
        >>> sum(p.size for p in jax.tree.leaves(variables))
        213258
    """

    num_classes: int = 10
    input_size: int = 28
    hidden_size: int = 128
    num_layers: int = 2
    bias: bool = True
    batch_first: bool = True
    dropout: float = 0.0
    bidirectional: bool = False
    proj_size: int = 0
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32
    implementation: str = "auto"
    remat: bool = False

    def __post_init__(self) -> None:
        check.require_positive_int("num_classes", self.num_classes)
        check.require_probability("dropout", self.dropout)
        # All other options are the stack's to judge.
        self._stack(parent=None)
        warn_of_idle_dropout(self)
        super().__post_init__()

    @nn.compact
    def __call__(
        self, input: Any, *, seq_lengths: Any = None, deterministic: bool = True
    ) -> jax.Array:
        """Logits of a batch of sequences.

        Args:
            input: (B, T, I), (T, B, I) unless batch_first, or (T, I); floating.
            seq_lengths: (B,) integers within [0, T], or None.
            deterministic: False applies dropout, which needs
                `rngs={'dropout': key}`.

        Returns:
            (B, num_classes), or (num_classes,) for (T, I), in the dtype of the
            computation.

        Raises:
            TypeError, ValueError: as `StackedLSTM` does.
        """
        output, (h_n, _) = self._stack(name="lstm")(
            input, seq_lengths=seq_lengths, deterministic=deterministic
        )
        # The last output is the final state, but for a reverse direction's. XLA
        # then needs neither the top layer's outputs nor their gradient.
        last = self._last(output, seq_lengths) if self.bidirectional else h_n[-1]
        head_init = torch_linear(last.shape[-1])
        return nn.Dense(
            self.num_classes,
            kernel_init=head_init,
            bias_init=head_init,
            dtype=last.dtype,
            param_dtype=self.param_dtype,
            name="head",
        )(last)

    def _last(self, output: jax.Array, seq_lengths: Any) -> jax.Array:
        batch_first = self.batch_first and output.ndim == 3
        by_time = output.swapaxes(0, 1) if batch_first else output
        return by_time[-1] if seq_lengths is None else _at_end(by_time, seq_lengths)

    def _stack(self, **linen: Any) -> StackedLSTM:
        return StackedLSTM(
            self.input_size,
            self.hidden_size,
            self.num_layers,
            bias=self.bias,
            batch_first=self.batch_first,
            # With one layer it does nothing, of which this class has warned already.
            dropout=self.dropout if self.num_layers != 1 else 0.0,
            bidirectional=self.bidirectional,
            proj_size=self.proj_size,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            implementation=self.implementation,
            remat=self.remat,
            **linen,
        )


def _at_end(output: jax.Array, seq_lengths: Any) -> jax.Array:
    """Of `output` (T, B, F), each row's own last valid step (B, F).

    A row of length 0 reads step 0, where the stack has left zeros; without the
    clip it would read step -1, the last of the padding.
    """
    last_step = jnp.clip(jnp.asarray(seq_lengths) - 1, 0, output.shape[0] - 1)
    return jnp.take_along_axis(output, last_step[None, :, None], axis=0)[0]
