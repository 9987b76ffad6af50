"""Layers and directions on top of one cell: everything but the gates."""

import abc
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import flax.core
import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.nn.initializers import Initializer
from jax.typing import DTypeLike

from flax_lstm import _validation as check
from flax_lstm._cell import StackableCell
from flax_lstm._compiled_once import compiled_once
from flax_lstm._initializers import torch_recurrent_bias, torch_recurrent_kernel
from flax_lstm._layers import StackRecurrence, layer_by_layer
from flax_lstm._recurrence import Recurrence, scan_over_time
from flax_lstm._remat import remat_over_time


def warn_of_idle_dropout(module: Any) -> None:
    """Warns as torch does of dropout without a layer to apply it to.

    To be called from a module's `__post_init__`. Flax clones a module whenever it
    binds it to variables (its parent is a Scope then); the warning belongs to the
    user's own construction.
    """
    bound = isinstance(module.parent, flax.core.Scope)
    if module.dropout > 0 and module.num_layers == 1 and not bound:
        warnings.warn(
            f"dropout: it is applied after every layer but the last, so "
            f"dropout={module.dropout} does nothing with num_layers=1",
            UserWarning,
            stacklevel=5,  # Here, __post_init__, Flax's two __init__: the caller.
        )


class RecurrentStack(nn.Module, kw_only=True):
    """A stack of recurrent layers, each in one or two directions.

    Subclasses declare torch's own options in torch's order, name their cell's
    class and build one cell; see `StackedLSTM`. What is Flax's or JAX's is
    declared here, by keyword only.

    The parameters of layer k are the cell's own tree under `layer_{k}`, those of
    its reverse direction under `layer_{k}_reverse`.
    """

    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32
    kernel_init: Initializer | None = None
    recurrent_kernel_init: Initializer | None = None
    bias_init: Initializer | None = None
    implementation: str = "auto"
    remat: bool = False

    cell_class: ClassVar[type[StackableCell]]
    initializer_options: ClassVar[tuple[str, ...]] = (
        "kernel_init",
        "recurrent_kernel_init",
        "bias_init",
    )
    implementations: ClassVar[Mapping[str, Recurrence]] = {
        "auto": compiled_once(scan_over_time),
        "scan": compiled_once(scan_over_time),
    }
    stack_implementations: ClassVar[Mapping[str, StackRecurrence]] = {}

    if TYPE_CHECKING:  # Declared by each subclass, in the order of its torch class.
        input_size: int
        hidden_size: int
        num_layers: int
        bias: bool
        batch_first: bool
        dropout: float
        bidirectional: bool

    # Flax's wrapping is for what a user calls. Around a helper it shows as an output
    # what that returns (`tabulate`), and asks for a scope, before there is one.
    @nn.nowrap
    @abc.abstractmethod
    def make_cell(self, dtype: DTypeLike, name: str) -> Any:
        """One cell, as a Linen module called `name` that computes in `dtype`."""

    def __post_init__(self) -> None:
        self.check_options()
        warn_of_idle_dropout(self)
        super().__post_init__()

    @nn.nowrap
    def check_options(self) -> None:
        """Raises a TypeError or ValueError if an option of the stack is wrong."""
        check.require_positive_int("input_size", self.input_size)
        check.require_positive_int("hidden_size", self.hidden_size)
        check.require_positive_int("num_layers", self.num_layers)
        check.require_bool("bias", self.bias)
        check.require_bool("batch_first", self.batch_first)
        check.require_probability("dropout", self.dropout)
        check.require_bool("bidirectional", self.bidirectional)
        if self.dtype is not None:
            check.require_floating_dtype("dtype", self.dtype)
        check.require_floating_dtype("param_dtype", self.param_dtype)
        for name in self.initializer_options:
            check.require_initializer(name, getattr(self, name))
        known = [*self.implementations, *self.stack_implementations]
        check.require_one_of("implementation", self.implementation, known)
        check.require_bool("remat", self.remat)
        if self.remat and self.implementation in self.stack_implementations:
            raise ValueError(
                f"remat: expected False with implementation={self.implementation!r}, "
                f"which keeps what it needs by itself, got True"
            )

    @property
    def kernel_initializer(self) -> Initializer:
        if self.kernel_init is not None:
            return self.kernel_init
        return torch_recurrent_kernel(self.hidden_size)

    @property
    def recurrent_kernel_initializer(self) -> Initializer:
        if self.recurrent_kernel_init is not None:
            return self.recurrent_kernel_init
        return torch_recurrent_kernel(self.hidden_size)

    @property
    def bias_initializer(self) -> Initializer:
        if self.bias_init is not None:
            return self.bias_init
        return torch_recurrent_bias(self.hidden_size)

    @property
    def _rows(self) -> int:
        """L·D, of a state."""
        return self.num_layers * (2 if self.bidirectional else 1)

    @property
    def state_sizes(self) -> tuple[int, ...]:
        proj_size = getattr(self, "proj_size", 0)
        return self.cell_class.state_sizes(self.hidden_size, proj_size)

    @nn.nowrap
    def run(
        self, input: Any, hx: Any, seq_lengths: Any, deterministic: Any
    ) -> tuple[jax.Array, Any]:
        """The whole stack; to be called from a subclass's compact `__call__`.

        Args:
            input: (T, B, I), (B, T, I) if batch_first, or (T, I).
            hx: None, or the states as torch takes them: a tuple of (L·D, B, ·)
                arrays, (L·D, ·) with (T, I), or the array alone if it is the only one.
            seq_lengths: None or (B,) integers.
            deterministic: False to apply dropout.

        Returns:
            The output in the layout of `input`, and the final states in the form of
            `hx`.
        """
        check.require_bool("deterministic", deterministic)
        x = check.as_floating_array("input", input)
        batched = x.ndim == 3
        batch_first = self.batch_first and batched
        check.require_input_shape("input", x, self.input_size, 1 if batch_first else 0)
        if batch_first:
            x = x.swapaxes(0, 1)
        if not batched:
            x = x[:, None]
        steps, batch = x.shape[:2]

        valid = None
        if seq_lengths is not None:
            shape = jnp.shape(input)
            lengths = check.as_lengths(seq_lengths, shape, batch, steps)
            valid = jnp.arange(steps)[:, None] < lengths[None, :]
            # Whatever stands in the padding (NaN too) must not reach a product:
            # 0 * NaN would come back in the gradients.
            x = jnp.where(valid[..., None], x, jnp.zeros_like(x))

        state = self._checked_state(hx, batch, batched)
        dtype = self._computation_dtype(x, state)
        x = x.astype(dtype)
        state = self._initial_state(state, x, dtype)

        x, state = self._run_layers(x, state, valid, deterministic, dtype)

        if not batched:
            x, state = x[:, 0], tuple(array[:, 0] for array in state)
        if batch_first:
            x = x.swapaxes(0, 1)
        return x, state if len(state) > 1 else state[0]

    @nn.nowrap
    def _run_layers(self, x, state, valid, deterministic, dtype):
        """Time-major (T, B, ·) through all layers, with dropout between them."""
        suffixes = ("", "_reverse") if self.bidirectional else ("",)
        layers = [
            [self.make_cell(dtype, name=f"layer_{layer}{s}") for s in suffixes]
            for layer in range(self.num_layers)
        ]
        run = self._stack_recurrence()
        drops = self.dropout > 0 and not deterministic
        at_once = 1 if drops else self.num_layers
        final_states = []
        for first in range(0, self.num_layers, at_once):
            if first:
                x = self._drop_out(x)
            start, end = first * len(suffixes), (first + at_once) * len(suffixes)
            rows = tuple(array[start:end] for array in state)
            x, new = run(layers[first : first + at_once], rows, x, valid=valid)
            final_states.append(new)
        if len(final_states) == 1:
            return x, final_states[0]
        return x, tuple(map(jnp.concatenate, zip(*final_states, strict=True)))

    @nn.nowrap
    def _stack_recurrence(self) -> StackRecurrence:
        if self.implementation in self.stack_implementations:
            return self.stack_implementations[self.implementation]
        recur = self.implementations[self.implementation]
        return layer_by_layer(remat_over_time(recur) if self.remat else recur)

    @nn.nowrap
    def _drop_out(self, x):
        # While initialising, Flax's own Dropout takes the parameters' key.
        if not self.has_rng("dropout") and not self.is_initializing():
            raise ValueError(
                f"rngs: expected a key for dropout={self.dropout} with "
                f"deterministic=False, got none; pass rngs={{'dropout': key}}"
            )
        return nn.Dropout(self.dropout)(x, deterministic=False)

    @nn.nowrap
    def _checked_state(self, hx, batch, batched):
        """The user's state as batched floating arrays of the right shapes, or None."""
        if hx is None:
            return None
        names = tuple(f"{name}_0" for name in self.cell_class.state_names)
        state = check.as_states(names, hx)
        rows = self._rows
        arrays = []
        for name, size, value in zip(names, self.state_sizes, state, strict=True):
            array = check.as_floating_array(name, value)
            expected = (rows, batch, size) if batched else (rows, size)
            check.require_shape(name, array, expected)
            arrays.append(array if batched else array[:, None])
        return tuple(arrays)

    @nn.nowrap
    def _computation_dtype(self, x, state):
        """`dtype` if set; else what input, hidden state and parameters promote to.

        The cell state has no say: it is float32 beside bfloat16 anyway. Parameters
        that are not there yet count as `param_dtype`.
        """
        if self.dtype is not None:
            return self.dtype
        hidden = () if state is None else (state[0],)
        params = jax.tree.leaves(self.variables.get("params", {}))
        return jnp.result_type(x, *hidden, *(params or [self.param_dtype]))

    @nn.nowrap
    def _initial_state(self, state, x, dtype):
        """`state` in the dtypes of the cell, or zeros, sharded as the rows of `x` are.

        Plain `jnp.zeros` would be replicated, which a scan over a batch with an
        explicit sharding refuses as its carry.
        """
        rows = self._rows
        dtypes = self.cell_class.state_dtypes(dtype)
        if state is not None:
            return tuple(
                array.astype(dtype) for array, dtype in zip(state, dtypes, strict=True)
            )
        column = jnp.zeros_like(x[0, :, :1])
        return tuple(
            jnp.broadcast_to(column.astype(dtype), (rows, column.shape[0], size))
            for size, dtype in zip(self.state_sizes, dtypes, strict=True)
        )
