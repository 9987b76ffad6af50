"""One time step of an LSTM layer, with torch's options."""

from typing import ClassVar

import flax.linen as nn
import jax
from jax.nn.initializers import Initializer
from jax.typing import DTypeLike

from flax_lstm._cell import State
from flax_lstm._dtypes import at_least_float32
from flax_lstm._initializers import offset_by
from flax_lstm._torch_layout import LAYOUTS, CellLayout


class LSTMCell(nn.OptimizedLSTMCell):
    r"""`flax.linen.OptimizedLSTMCell` with the options that torch has and Flax lacks.

    The carry `(c, h)` and the parameter names (`ii if ig io`, `hi hf hg ho`) are
    Flax's, so the stock cell's parameters can be used. Added are `use_bias=False`, a
    projected hidden state, and a cell state whose dtype may be wider than that of the
    computation (float32 with bfloat16).

    .. math::
        i &= σ(W_{ii} x + W_{hi} h + b_{hi}) \\
        f &= σ(W_{if} x + W_{hf} h + b_{hf}) \\
        g &= \tanh(W_{ig} x + W_{hg} h + b_{hg}) \\
        o &= σ(W_{io} x + W_{ho} h + b_{ho}) \\
        c' &= f ∘ c + i ∘ g \\
        h' &= W_{hr} (o ∘ \tanh c')  \quad (W_{hr} = 1 without projection)

    Attributes (in addition to those of `flax.linen.OptimizedLSTMCell`):
        use_bias: whether the four biases `h*/bias` exist.
        proj_size: width P of the projected hidden state; 0 means none, P = H.
        projection_kernel_init: initializer of the projection `hr/kernel` (H, P).
        forget_bias: constant that initialisation adds to the forget gate's bias.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from flax_lstm._lstm_cell import LSTMCell
        >>> cell = LSTMCell(features=4, proj_size=2)
        >>> x = jnp.ones((3, 5))
        >>> carry = cell.initialize_carry(jax.random.key(0), x.shape)
        >>> variables = cell.init(jax.random.key(1), carry, x)
        >>> (c, h), y = cell.apply(variables, carry, x)
        >>> c.shape, h.shape, y.shape
        ((3, 4), (3, 2), (3, 2))

    Sources: Hochreiter & Schmidhuber 1997; projection: Sak et al. 2014
    (https://arxiv.org/abs/1402.1128);
    https://docs.pytorch.org/docs/stable/generated/torch.nn.LSTM.html
    """

    use_bias: bool = True
    proj_size: int = 0
    projection_kernel_init: Initializer = nn.initializers.lecun_normal()
    forget_bias: float = 0.0

    state_names: ClassVar[tuple[str, ...]] = ("h", "c")
    torch_layout: ClassVar[CellLayout] = LAYOUTS["lstm"]

    @nn.compact
    def __call__(
        self, carry: tuple[jax.Array, jax.Array], inputs: jax.Array
    ) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
        """One step.

        Args:
            carry: `(c, h)` of shapes (..., H) and (..., P).
            inputs: (..., I), floating.

        Returns:
            `((c', h'), h')`; `c'` keeps the dtype of `c` if that is the wider one,
            `h'` has the dtype of the computation.
        """
        c, h = carry
        x = inputs
        i = self.gate_fn(self._from_input("i")(x) + self._from_hidden("i")(h))
        f = self.gate_fn(self._from_input("f")(x) + self._from_hidden("f")(h))
        g = self.activation_fn(self._from_input("g")(x) + self._from_hidden("g")(h))
        o = self.gate_fn(self._from_input("o")(x) + self._from_hidden("o")(h))
        # c may be float32 with bfloat16 gates: it is accumulated over time in its own
        # dtype, and what leaves the cell is cast back to the dtype of the gates.
        new_c = f.astype(c.dtype) * c + (i * g).astype(c.dtype)
        new_h = (o.astype(c.dtype) * self.activation_fn(new_c)).astype(o.dtype)
        if self.proj_size:
            new_h = self._projection()(new_h)
        return (new_c, new_h), new_h

    # One product per gate; a concatenated one that is then split is slower on XLA:CPU
    # (docs/design.md).
    @nn.nowrap
    def _from_input(self, gate: str) -> nn.Dense:
        return nn.Dense(
            self.features,
            use_bias=False,
            kernel_init=self.kernel_init,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            name=f"i{gate}",
        )

    @nn.nowrap
    def _from_hidden(self, gate: str) -> nn.Dense:
        offset = self.forget_bias if gate == "f" else 0.0
        return nn.Dense(
            self.features,
            use_bias=self.use_bias,
            kernel_init=self.recurrent_kernel_init,
            bias_init=offset_by(self.bias_init, offset),
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            name=f"h{gate}",
        )

    @nn.nowrap
    def _projection(self) -> nn.Dense:
        return nn.Dense(
            self.proj_size,
            use_bias=False,
            kernel_init=self.projection_kernel_init,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            name="hr",
        )

    @nn.nowrap
    def initialize_carry(
        self, rng: jax.Array, input_shape: tuple[int, ...]
    ) -> tuple[jax.Array, jax.Array]:
        """`(c, h)` drawn by `carry_init`, for inputs of `input_shape` (..., I)."""
        key_c, key_h = jax.random.split(rng)
        h_dtype, c_dtype = self.state_dtypes(self.dtype or self.param_dtype)
        h_size, c_size = self.state_sizes(self.features, self.proj_size)
        c = self.carry_init(key_c, (*input_shape[:-1], c_size), c_dtype)
        h = self.carry_init(key_h, (*input_shape[:-1], h_size), h_dtype)
        return c, h

    @staticmethod
    def state_sizes(hidden_size: int, proj_size: int) -> tuple[int, ...]:
        return proj_size or hidden_size, hidden_size

    @staticmethod
    def state_dtypes(dtype: DTypeLike) -> tuple[DTypeLike, ...]:
        return dtype, at_least_float32(dtype)

    @staticmethod
    def to_carry(state: State) -> tuple[jax.Array, jax.Array]:
        h, c = state
        return c, h

    @staticmethod
    def to_state(carry: tuple[jax.Array, jax.Array]) -> State:
        c, h = carry
        return h, c
