"""One time step of a GRU layer, with torch's options."""

from typing import ClassVar

import flax.linen as nn
import jax
from jax.nn.initializers import Initializer

from flax_lstm._cell import HiddenStateCell
from flax_lstm._torch_layout import LAYOUTS, CellLayout


class GRUCell(HiddenStateCell, nn.GRUCell):
    r"""`flax.linen.GRUCell` with the options that torch has and Flax lacks.

    The carry h and the parameter names (`ir iz in`, `hr hz hn`, all but `hr` and
    `hz` with a bias) are Flax's, so the stock cell's parameters can be used. Added are
    `use_bias=False`, and an initializer of its own for the two biases of n.

    .. math::
        r &= σ(W_{ir} x + b_{ir} + W_{hr} h) \\
        z &= σ(W_{iz} x + b_{iz} + W_{hz} h) \\
        n &= \tanh(W_{in} x + b_{in} + r ∘ (W_{hn} h + b_{hn})) \\
        h' &= (1 - z) ∘ n + z ∘ h

    Attributes (in addition to those of `flax.linen.GRUCell`):
        use_bias: whether the four biases exist.
        n_bias_init: initializer of `in/bias` and `hn/bias`. r multiplies only the
            latter, so the two can't be merged into one as in the other gates.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from flax_lstm._gru_cell import GRUCell
        >>> cell = GRUCell(features=4)
        >>> x = jnp.ones((3, 5))
        >>> h = cell.initialize_carry(jax.random.key(0), x.shape)
        >>> variables = cell.init(jax.random.key(1), h, x)
        >>> h, y = cell.apply(variables, h, x)
        >>> h.shape, y.shape
        ((3, 4), (3, 4))

    Sources: Cho et al. 2014 (https://arxiv.org/abs/1406.1078), where r multiplies h
    before the matrix product, not after it as here and in
    https://docs.pytorch.org/docs/stable/generated/torch.nn.GRU.html
    """

    use_bias: bool = True
    n_bias_init: Initializer = nn.initializers.zeros_init()

    torch_layout: ClassVar[CellLayout] = LAYOUTS["gru"]

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
        h, x = carry, inputs
        r = self.gate_fn(self._from_input("r")(x) + self._from_hidden("r")(h))
        z = self.gate_fn(self._from_input("z")(x) + self._from_hidden("z")(h))
        n = self.activation_fn(self._from_input("n")(x) + r * self._from_hidden("n")(h))
        new_h = (1 - z) * n + z * h
        return new_h, new_h

    @nn.nowrap
    def _from_input(self, gate: str) -> nn.Dense:
        return nn.Dense(
            self.features,
            use_bias=self.use_bias,
            kernel_init=self.kernel_init,
            bias_init=self.n_bias_init if gate == "n" else self.bias_init,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            name=f"i{gate}",
        )

    @nn.nowrap
    def _from_hidden(self, gate: str) -> nn.Dense:
        return nn.Dense(
            self.features,
            use_bias=self.use_bias and gate == "n",
            kernel_init=self.recurrent_kernel_init,
            bias_init=self.n_bias_init,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            name=f"h{gate}",
        )
