"""`StackedRNN`: torch.nn.RNN as a Flax Linen module."""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import flax.linen as nn
from jax.typing import DTypeLike

from flax_lstm import _validation as check
from flax_lstm._hidden_state_stack import HiddenStateStack
from flax_lstm._rnn_cell import RNNCell

NONLINEARITIES: Mapping[str, Callable[..., Any]] = {"tanh": nn.tanh, "relu": nn.relu}


class StackedRNN(HiddenStateStack):
    r"""A multi-layer, optionally bidirectional RNN with torch.nn.RNN's semantics.

    Each layer computes, for t = 1 … T and with :math:`h` starting from the given
    state or zero,

    .. math::
        h_t = \tanh(W_i x_t + b_i + W_h h_{t-1})

    or the same with ReLU for tanh.

    Axis letters: `B` batch, `T` time, `I` input_size, `H` hidden_size, `L`
    num_layers, `D` directions.

    Intended differences from torch: there is one bias, which stands for the sum of
    torch's two (`params_from_torch` adds them, `scale_by_torch_biases` makes it train
    like their sum); variable lengths are passed as `seq_lengths` instead of a
    PackedSequence, and may be 0; dropout needs `deterministic=False` and a PRNG key.

    Args:
        input_size: I, number of features of one step.
        hidden_size: H, number of features of the hidden state.
        num_layers: L, number of layers; each reads the output of the one below.
        nonlinearity: `'tanh'` or `'relu'`.
        bias: False for no bias parameters at all.
        batch_first: True if input and output are (B, T, ·); states stay (L·D, B, ·).
        dropout: probability that an element of the output of any layer but the last
            is zeroed, when `deterministic=False`.
        bidirectional: True to also run every layer in reverse over its input (D = 2).
        dtype: dtype of the computation; None promotes input, h_0 and parameters.
        param_dtype: dtype in which parameters are created.
        kernel_init: initializer of the input kernels, (I, H) each, and (D·H, H) above
            the first layer.
        recurrent_kernel_init: initializer of the hidden kernels, (H, H) each.
        bias_init: initializer of the biases, (H,) each. All initializers default
            to torch's U(-1/√H, 1/√H), except that a bias is the sum of two such draws.
        implementation: how the recurrence over time is run. `'scan'`: `nn.scan`
            over the cell, step by step. `'auto'`: `'scan'`.
        remat: True to keep the states of only every ⌈√T⌉-th step for the backward
            pass and recompute the others, for long sequences.

    Parameters (under `'params'`): for each layer k, and for each reverse direction
    with `_reverse` appended, `layer_{k}/i/{kernel,bias}` (I or D·H, H) and (H,), and
    `layer_{k}/h/kernel` (H, H). The names are those of flax.linen.SimpleCell.

    Raises:
        ValueError, TypeError: an option is out of its range or of the wrong type.

    Warns:
        UserWarning: dropout > 0 with one layer, where it does nothing.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from flax_lstm import StackedRNN
        >>> rnn = StackedRNN(input_size=28, hidden_size=128, num_layers=2,
        ...                  nonlinearity='relu', batch_first=True)
        >>> x = jnp.ones((5, 7, 28))
        >>> variables = rnn.init(jax.random.key(0), x)
        >>> output, h_n = rnn.apply(variables, x)
        >>> output.shape, h_n.shape
        ((5, 7, 128), (2, 5, 128))

    Source: https://docs.pytorch.org/docs/stable/generated/torch.nn.RNN.html
    """

    input_size: int
    hidden_size: int
    num_layers: int = 1
    nonlinearity: str = "tanh"
    bias: bool = True
    batch_first: bool = False
    dropout: float = 0.0
    bidirectional: bool = False

    cell_class: ClassVar[type[RNNCell]] = RNNCell

    @nn.nowrap
    def check_options(self) -> None:
        super().check_options()
        check.require_one_of("nonlinearity", self.nonlinearity, tuple(NONLINEARITIES))

    @nn.nowrap
    def make_cell(self, dtype: DTypeLike, name: str) -> RNNCell:
        return RNNCell(
            features=self.hidden_size,
            use_bias=self.bias,
            activation_fn=NONLINEARITIES[self.nonlinearity],
            **self.initializers(),
            dtype=dtype,
            param_dtype=self.param_dtype,
            name=name,
        )
