"""`StackedLSTM`: torch.nn.LSTM as a Flax Linen module."""

from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY
from typing import ClassVar

import flax.linen as nn
import jax
from jax.typing import ArrayLike, DTypeLike

from flax_lstm import _validation as check
from flax_lstm._cudnn_lstm import run_layers_by_cudnn
from flax_lstm._fused_lstm import run_fused_over_time
from flax_lstm._layers import StackRecurrence
from flax_lstm._lstm_cell import LSTMCell
from flax_lstm._native_lstm import run_native_or_fused_over_time, run_native_over_time
from flax_lstm._recurrence import Recurrence, scan_compiled_once
from flax_lstm._stack import RecurrentStack

_FLOAT32_ONLY = ("cudnn", "native")


class StackedLSTM(RecurrentStack):
    r"""A multi-layer, optionally bidirectional LSTM with torch.nn.LSTM's semantics.

    Each layer computes, for t = 1 … T and with :math:`h` and :math:`c` starting
    from the given state or zero,

    .. math::
        i_t &= σ(W_{ii} x_t + W_{hi} h_{t-1} + b_{hi}) \\
        f_t &= σ(W_{if} x_t + W_{hf} h_{t-1} + b_{hf}) \\
        g_t &= \tanh(W_{ig} x_t + W_{hg} h_{t-1} + b_{hg}) \\
        o_t &= σ(W_{io} x_t + W_{ho} h_{t-1} + b_{ho}) \\
        c_t &= f_t ∘ c_{t-1} + i_t ∘ g_t \\
        h_t &= W_{hr} (o_t ∘ \tanh c_t) \quad (W_{hr} = 1 \text{ without } proj\_size)

    Axis letters: `B` batch, `T` time, `I` input_size, `H` hidden_size, `P` the
    width of h (proj_size if set, else H), `L` num_layers, `D` directions.

    Intended differences from torch: each gate has one bias, which stands for the sum of
    torch's two (`params_from_torch` adds them, `scale_by_torch_biases` makes it train
    like their sum); variable lengths are passed as `seq_lengths` instead of a
    PackedSequence, and may be 0; dropout needs `deterministic=False` and a PRNG key.

    Args:
        input_size: I, number of features of one step.
        hidden_size: H, number of features of the cell state.
        num_layers: L, number of layers; each reads the output of the one below.
        bias: False for no bias parameters at all.
        batch_first: True if input and output are (B, T, ·); states stay (L·D, B, ·).
        dropout: probability that an element of the output of any layer but the last
            is zeroed, when `deterministic=False`.
        bidirectional: True to also run every layer in reverse over its input (D = 2).
        proj_size: P, the size that the hidden state is projected to, less than H; 0 for
            no projection.
        projection_kernel_init: initializer of the projection, (H, P); defaults to
            `recurrent_kernel_init`.
        forget_bias: constant that initialisation adds to the forget gate's bias (1.0
            is common; torch adds nothing).
        dtype: dtype of the computation; None promotes input, h_0 and parameters.
        param_dtype: dtype in which parameters are created.
        kernel_init: initializer of the input kernels, (I, H) each, and (D·P, H) above
            the first layer.
        recurrent_kernel_init: initializer of the hidden kernels, (P, H) each.
        bias_init: initializer of the biases, (H,) each. These three default to torch's
            U(-1/√H, 1/√H), except that a bias is the sum of two such draws.
        implementation: how the recurrence over time is computed; parameters and results
            are the same. `'scan'`: `nn.scan` over the cell, step by step. `'fused'`: a
            scan with a derivative rule of its own, which computes each weight's
            gradient as one product after the loop, see `flax_lstm/_fused_lstm.py`.
            `'cudnn'`: NVIDIA's cuDNN, for float32 on NVIDIA GPUs, without projection
            and remat, in TF32 unless `jax_default_matmul_precision` is 'highest' or
            'float32'; under vmap, and for derivatives other than reverse mode, it falls
            back to `'fused'`, see `flax_lstm/_cudnn_lstm.py`. `'native'`: C++ loops on
            a CPU (or, with `--gpu`, kernels on an NVIDIA GPU), once
            `python -m flax_lstm.native` has compiled them, for float32 without
            projection; under vmap, in exported functions and where XLA itself divides
            a computation among devices, `'fused'` runs instead, see
            `flax_lstm/_native_lstm.py`. `'auto'`: on a CPU `'native'`
            where it is compiled, applicable and faster, else `'fused'`.
            `experiments/BENCHMARK.md` has the measurements.
        remat: True to keep the states of only every ⌈√T⌉-th step for the backward
            pass and recompute the others, for long sequences: memory besides inputs
            and outputs grows with √T instead of T, at the cost of one more forward
            pass.

    Parameters (under `'params'`): for each layer k, and for each reverse direction
    with `_reverse` appended, `layer_{k}/{ii,if,ig,io}/kernel` (I or D·P, H),
    `layer_{k}/{hi,hf,hg,ho}/{kernel,bias}` (P, H) and (H,), and with proj_size
    `layer_{k}/hr/kernel` (H, P). All but `hr` are the names of
    flax.linen.OptimizedLSTMCell.

    Raises:
        ValueError, TypeError: an option is out of its range or of the wrong type.

    Warns:
        UserWarning: dropout > 0 with one layer, where it does nothing.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from flax_lstm import StackedLSTM
        >>> lstm = StackedLSTM(input_size=28, hidden_size=128, num_layers=2,
        ...                    batch_first=True)
        >>> x = jnp.ones((5, 7, 28))
        >>> variables = lstm.init(jax.random.key(0), x)
        >>> output, (h_n, c_n) = lstm.apply(variables, x)
        >>> output.shape, h_n.shape, c_n.shape
        ((5, 7, 128), (2, 5, 128), (2, 5, 128))

        Rows of different lengths; values past a row's end are ignored:

        >>> output, (h_n, c_n) = lstm.apply(
        ...     variables, x, seq_lengths=jnp.array([7, 3, 1, 0, 7]))
        >>> bool((output[1, 3:] == 0).all())
        True

    Source: https://docs.pytorch.org/docs/stable/generated/torch.nn.LSTM.html
    """

    input_size: int
    hidden_size: int
    num_layers: int = 1
    bias: bool = True
    batch_first: bool = False
    dropout: float = 0.0
    bidirectional: bool = False
    proj_size: int = 0
    _: KW_ONLY
    projection_kernel_init: nn.initializers.Initializer | None = None
    forget_bias: float = 0.0

    cell_class: ClassVar[type[LSTMCell]] = LSTMCell
    initializer_options: ClassVar[tuple[str, ...]] = (
        *RecurrentStack.initializer_options,
        "projection_kernel_init",
    )
    implementations: ClassVar[Mapping[str, Recurrence]] = {
        "auto": run_native_or_fused_over_time,
        "scan": scan_compiled_once,
        "fused": run_fused_over_time,
        "native": run_native_over_time,
    }
    stack_implementations: ClassVar[Mapping[str, StackRecurrence]] = {
        "cudnn": run_layers_by_cudnn,
    }

    @nn.compact
    def __call__(
        self,
        input: "ArrayLike",
        hx: "tuple[ArrayLike, ArrayLike] | None" = None,
        *,
        seq_lengths: "ArrayLike | Sequence[int] | None" = None,
        deterministic: bool = True,
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        """Runs the stack over a sequence.

        Args:
            input: (T, B, I), (B, T, I) if batch_first, or unbatched (T, I);
                floating-point. Other floating dtypes are cast, as in Flax; integer
                ones are rejected.
            hx: `(h_0, c_0)` of shapes (L·D, B, P) and (L·D, B, H), or (L·D, P) and
                (L·D, H) with unbatched input; floating-point. Rows are in torch's
                order: layer 0 forward, layer 0 reverse, layer 1 forward, … None means
                zeros. The returned states can be passed to continue a sequence.
            seq_lengths: (B,) integers, the number of valid steps in each row, in place
                of a PackedSequence; None if all are valid. Concrete values outside
                [0, T] are an error; values traced by jit or vmap are clipped to [0, T].
            deterministic: False applies dropout, which needs
                `rngs={'dropout': key}`.

        Returns:
            `output, (h_n, c_n)`. `output` is (T, B, D·P), (B, T, D·P) if batch_first,
            or (T, D·P): the last layer's h at every step, and zeros past a row's
            end. `h_n` (L·D, B, P) and `c_n` (L·D, B, H) are the states after each
            row's own last step (the initial ones for a length of 0).

            `output` and `h_n` have the dtype of the computation; so has `c_n`, or
            float32 if that is wider.

        Raises:
            TypeError: a non-floating input or state, non-integer lengths, a state
                that is not a tuple or list, a `deterministic` that is not a bool.
            ValueError: a wrong rank, size, shape or length, an empty sequence,
                lengths with unbatched input, a missing dropout key, parameters of
                another stack, an `implementation` that can't be used here.
            flax.errors.FlaxError: parameters that are missing or of another shape.
        """
        return self.run(input, hx, seq_lengths, deterministic)

    @nn.nowrap
    def check_options(self) -> None:
        super().check_options()
        check.require_natural_int("proj_size", self.proj_size)
        if self.proj_size >= self.hidden_size:
            raise ValueError(
                f"proj_size: expected it to be smaller than hidden_size "
                f"{self.hidden_size}, got {self.proj_size}"
            )
        if self.implementation in _FLOAT32_ONLY:
            self._check_float32_only_options()
        check.require_number("forget_bias", self.forget_bias)
        if self.forget_bias and not self.bias:
            raise ValueError(
                f"forget_bias: expected 0 with bias=False, which leaves no bias to "
                f"add it to, got {self.forget_bias}"
            )

    @nn.nowrap
    def _check_float32_only_options(self) -> None:
        if self.proj_size:
            raise ValueError(
                f"proj_size: expected 0 with implementation={self.implementation!r}, "
                f"which has no projection, got {self.proj_size}"
            )
        if self.dtype is not None:
            check.require_float32(self.dtype, self.implementation)

    @nn.nowrap
    def make_cell(self, dtype: DTypeLike, name: str) -> LSTMCell:
        initializers = self.initializers()
        return LSTMCell(
            features=self.hidden_size,
            use_bias=self.bias,
            proj_size=self.proj_size,
            **initializers,
            projection_kernel_init=self.initializer_of(
                "projection_kernel_init", initializers["recurrent_kernel_init"]
            ),
            forget_bias=float(self.forget_bias),
            dtype=dtype,
            param_dtype=self.param_dtype,
            name=name,
        )
