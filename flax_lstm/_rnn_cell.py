"""One time step of an RNN layer, with torch's options."""

from typing import ClassVar

import flax.linen as nn
import jax

from flax_lstm._cell import HiddenStateCell
from flax_lstm._torch_layout import LAYOUTS, CellLayout


class RNNCell(HiddenStateCell, nn.SimpleCell):
    r"""`flax.linen.SimpleCell` with the one option that torch has and Flax lacks.

    The carry h and the parameter names (`i`, with the bias, and `h`) are Flax's, so the
    stock cell's parameters can be used. Added is `use_bias=False`.

    .. math::
        h' = \tanh(W_i x + b_i + W_h h)

    with `activation_fn` for tanh.

    Attributes (in addition to those of `flax.linen.SimpleCell`):
        use_bias: whether the bias `i/bias` exists.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from flax_lstm._rnn_cell import RNNCell
        >>> cell = RNNCell(features=4)
        >>> x = jnp.ones((3, 5))
        >>> h = cell.initialize_carry(jax.random.key(0), x.shape)
        >>> variables = cell.init(jax.random.key(1), h, x)
        >>> h, y = cell.apply(variables, h, x)
        >>> h.shape, y.shape
        ((3, 4), (3, 4))

    Sources: Elman 1990 (https://doi.org/10.1207/s15516709cog1402_1);
    https://docs.pytorch.org/docs/stable/generated/torch.nn.RNN.html
    """

    use_bias: bool = True

    torch_layout: ClassVar[CellLayout] = LAYOUTS["rnn"]

    @nn.compact
    def __call__(
        self, carry: jax.Array, inputs: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """One step.

        Args:
            carry: h, (..., H).
            inputs: (..., I), floating.

        Returns:
            `(h', h')`.
        """
        h = carry
        from_input = nn.Dense(
            self.features,
            use_bias=self.use_bias,
            kernel_init=self.kernel_init,
            bias_init=self.bias_init,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            name="i",
        )
        from_hidden = nn.Dense(
            self.features,
            use_bias=False,
            kernel_init=self.recurrent_kernel_init,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            name="h",
        )
        z = from_input(inputs) + from_hidden(h)
        if self.residual:
            z += h
        new_h = self.activation_fn(z)
        return new_h, new_h
