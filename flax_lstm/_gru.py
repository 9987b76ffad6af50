"""`StackedGRU`: torch.nn.GRU as a Flax Linen module."""

from collections.abc import Mapping
from typing import ClassVar

import flax.linen as nn
from jax.typing import DTypeLike

from flax_lstm import _validation as check
from flax_lstm._gru_cell import GRUCell
from flax_lstm._hidden_state_stack import HiddenStateStack
from flax_lstm._initializers import torch_uniform
from flax_lstm._native_gru import run_native_gru_over_time, run_native_or_scan_over_time
from flax_lstm._recurrence import Recurrence, scan_compiled_once


class StackedGRU(HiddenStateStack):
    r"""A multi-layer, optionally bidirectional GRU with torch.nn.GRU's semantics.

    Each layer computes, for t = 1 … T and with :math:`h` starting from the given
    state or zero,

    .. math::
        r_t &= σ(W_{ir} x_t + b_{ir} + W_{hr} h_{t-1}) \\
        z_t &= σ(W_{iz} x_t + b_{iz} + W_{hz} h_{t-1}) \\
        n_t &= \tanh(W_{in} x_t + b_{in} + r_t ∘ (W_{hn} h_{t-1} + b_{hn})) \\
        h_t &= (1 - z_t) ∘ n_t + z_t ∘ h_{t-1}

    Axis letters: `B` batch, `T` time, `I` input_size, `H` hidden_size, `L`
    num_layers, `D` directions.

    Intended differences from torch: r and z have one bias each, which stands for the
    sum of torch's two (`params_from_torch` adds them, `scale_by_torch_biases` makes it
    train like their sum), while n has both, as in torch; variable lengths are passed as
    `seq_lengths` instead of a PackedSequence, and may be 0; dropout needs
    `deterministic=False` and a PRNG key.

    Args:
        input_size: I, number of features of one step.
        hidden_size: H, number of features of the hidden state.
        num_layers: L, number of layers; each reads the output of the one below.
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
            to torch's U(-1/√H, 1/√H), except that the biases of r and z are the sum of
            two such draws.
        implementation: how the recurrence over time is computed; parameters and results
            are the same. `'scan'`: `nn.scan` over the cell, step by step. `'native'`:
            C++ loops on a CPU, once `python -m flax_lstm.native` has compiled them, for
            float32; under vmap, on other platforms, in exported functions and where XLA
            itself divides a computation among devices, a scan with the same derivatives
            runs instead, see `flax_lstm/_native_gru.py`. `'auto'`: on a CPU `'native'`
            where it is compiled, applicable and faster, else `'scan'`.
        remat: True to keep the states of only every ⌈√T⌉-th step for the backward
            pass and recompute the others, for long sequences.

    Parameters (under `'params'`): for each layer k, and for each reverse direction
    with `_reverse` appended, `layer_{k}/{ir,iz,in}/{kernel,bias}` (I or D·H, H) and
    (H,), `layer_{k}/{hr,hz,hn}/kernel` (H, H) and `layer_{k}/hn/bias` (H,). The names
    are those of flax.linen.GRUCell.

    Raises:
        ValueError, TypeError: an option is out of its range or of the wrong type.

    Warns:
        UserWarning: dropout > 0 with one layer, where it does nothing.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from flax_lstm import StackedGRU
        >>> gru = StackedGRU(input_size=28, hidden_size=128, num_layers=2,
        ...                  batch_first=True)
        >>> x = jnp.ones((5, 7, 28))
        >>> variables = gru.init(jax.random.key(0), x)
        >>> output, h_n = gru.apply(variables, x)
        >>> output.shape, h_n.shape
        ((5, 7, 128), (2, 5, 128))

    Source: https://docs.pytorch.org/docs/stable/generated/torch.nn.GRU.html
    """

    input_size: int
    hidden_size: int
    num_layers: int = 1
    bias: bool = True
    batch_first: bool = False
    dropout: float = 0.0
    bidirectional: bool = False

    cell_class: ClassVar[type[GRUCell]] = GRUCell
    implementations: ClassVar[Mapping[str, Recurrence]] = {
        "auto": run_native_or_scan_over_time,
        "scan": scan_compiled_once,
        "native": run_native_gru_over_time,
    }

    @nn.nowrap
    def check_options(self) -> None:
        super().check_options()
        if self.implementation == "native" and self.dtype is not None:
            check.require_float32(self.dtype, "native")

    @nn.nowrap
    def make_cell(self, dtype: DTypeLike, name: str) -> GRUCell:
        return GRUCell(
            features=self.hidden_size,
            use_bias=self.bias,
            **self.initializers(),
            n_bias_init=self.initializer_of(
                "bias_init", torch_uniform(self.hidden_size)
            ),
            dtype=dtype,
            param_dtype=self.param_dtype,
            name=name,
        )
