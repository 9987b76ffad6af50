"""Layers and directions on top of one cell: everything but the gates."""

import abc
import functools
import warnings
from collections.abc import Hashable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import flax.core
import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.nn.initializers import Initializer
from jax.typing import DTypeLike

from flax_lstm import _validation as check
from flax_lstm._cell import StackableCell, State
from flax_lstm._compiled_once import (
    Function,
    compiled_once,
    dependencies_of,
    is_cacheable,
)
from flax_lstm._foreign_weights import refuse_foreign_weights, require_params
from flax_lstm._initializers import (
    named,
    torch_recurrent_bias,
    torch_uniform,
)
from flax_lstm._layers import StackRecurrence, layer_by_layer
from flax_lstm._layouts import as_given, masked, time_major
from flax_lstm._recurrence import Recurrence, scan_compiled_once
from flax_lstm._remat import remat_over_time

SIZES = ("input_size", "hidden_size", "num_layers", "proj_size")
"""The options that are integers; the last one is an LSTM's only."""


def warn_of_idle_dropout(module: Any) -> None:
    """Warns, as torch does, of dropout without a layer to apply it to.

    To be called from a module's `__post_init__`, before Flax's own. Flax makes a module
    anew whenever it binds it to variables or another module adopts it, with a Scope, a
    Module or None as its parent; one that the user constructs does not have any yet.
    """
    parent = module.parent
    remade = parent is None or isinstance(parent, (flax.core.Scope, nn.Module))
    if module.dropout > 0 and module.num_layers == 1 and not remade:
        warnings.warn(
            f"dropout: it is applied after every layer but the last, so "
            f"dropout={module.dropout} does nothing with num_layers=1",
            UserWarning,
            stacklevel=5,  # This, __post_init__, Flax's two __init__, the caller.
        )


class RecurrentStack(nn.Module, kw_only=True):
    """A stack of recurrent layers, each in one or two directions.

    Subclasses declare torch's own options in torch's order, name their cell's
    class and build one cell; see `StackedLSTM`. Options specific to Flax or JAX are
    declared here, as keyword-only arguments.

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
        "auto": scan_compiled_once,
        "scan": scan_compiled_once,
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

    # Flax wraps methods for users to call. Around a helper the wrapper makes `tabulate`
    # list the return value as an output, and needs a scope before there is one.
    @nn.nowrap
    @abc.abstractmethod
    def make_cell(self, dtype: DTypeLike, name: str) -> Any:
        """One cell, as a Linen module called `name` that computes in `dtype`."""

    def __post_init__(self) -> None:
        self.check_options()
        check.as_ints(self, SIZES)
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
                f"which decides itself what to save for the backward pass, got True"
            )

    @nn.nowrap
    def initializer_of(self, option: str, torch_default: Initializer) -> Initializer:
        """The user's initializer, whose errors name `option`, or torch's."""
        given = getattr(self, option)
        return torch_default if given is None else named(option, given)

    @nn.nowrap
    def initializers(self) -> dict[str, Any]:
        """The initializers that every cell takes, by the cell's names for them."""
        kernel = torch_uniform(self.hidden_size)
        bias = torch_recurrent_bias(self.hidden_size)
        return {
            "kernel_init": self.initializer_of("kernel_init", kernel),
            "recurrent_kernel_init": self.initializer_of(
                "recurrent_kernel_init", kernel
            ),
            "bias_init": self.initializer_of("bias_init", bias),
        }

    @property
    def _num_cells(self) -> int:
        """L·D, which is also the length of a state array's first axis."""
        return self.num_layers * (2 if self.bidirectional else 1)

    @property
    def _layer_names(self) -> list[list[str]]:
        """Names of each layer's cells, one for each direction."""
        suffixes = ("", "_reverse") if self.bidirectional else ("",)
        return [[f"layer_{k}{s}" for s in suffixes] for k in range(self.num_layers)]

    @property
    def state_sizes(self) -> tuple[int, ...]:
        sizes = self.hidden_size, getattr(self, "proj_size", 0)
        return self.cell_class.state_sizes(*sizes)

    @property
    def output_size(self) -> int:
        """Width of the output, D·P."""
        return self.state_sizes[0] * (2 if self.bidirectional else 1)

    @nn.nowrap
    def run(
        self, input: Any, hx: Any, seq_lengths: Any, deterministic: Any
    ) -> tuple[jax.Array, Any]:
        """The whole stack; to be called from a subclass's compact `__call__`.

        Args:
            input: (T, B, I), (B, T, I) if batch_first, or (T, I).
            hx: None, or the states as torch takes them: a tuple of (L·D, B, ·)
                arrays, (L·D, ·) with (T, I), or the array itself if there is only one.
            seq_lengths: None or (B,) integers.
            deterministic: False to apply dropout.

        Returns:
            The output in the layout of `input`, and the final states in the form of
            `hx`.
        """
        check.require_bool("deterministic", deterministic)
        x, lengths = self.checked_input(input, seq_lengths)
        state = self._checked_state(hx, x)
        self._refuse_foreign_weights()
        dtype = self.computation_dtype(x, state)
        batched = x.ndim == 3
        batch_first = self.batch_first and batched
        x, state, valid = time_major(
            x,
            state,
            lengths,
            batch_first=batch_first,
            dtype=dtype,
            num_cells=self._num_cells,
            sizes=self.state_sizes,
            dtypes=self.cell_class.state_dtypes(dtype),
        )
        x, state = self._run_layers(x, state, valid, deterministic, dtype)
        x, state = as_given(x, state, batch_first=batch_first, batched=batched)
        return x, state if len(state) > 1 else state[0]

    @nn.nowrap
    def _run_layers(self, x, state, valid, deterministic, dtype):
        """Time-major (T, B, ·) through all layers, with dropout between them."""
        layers = tuple(
            tuple(self.make_cell(dtype, name=name) for name in names)
            for names in self._layer_names
        )
        run = self._stack_recurrence()
        if self.dropout == 0 or deterministic or self.num_layers == 1:
            return run(layers, state, x, valid=valid)
        final_states = []
        for layer, cells in enumerate(layers):
            if layer:
                x = self._drop_out(x)
            start, end = layer * len(cells), (layer + 1) * len(cells)
            rows = tuple(array[start:end] for array in state)
            x, new = run((cells,), rows, x, valid=valid)
            final_states.append(new)
        return x, tuple(map(jnp.concatenate, zip(*final_states, strict=True)))

    @nn.nowrap
    def _stack_recurrence(self) -> StackRecurrence:
        run = self.recurrence
        if self.implementation not in self.stack_implementations:
            # Nothing is differentiated while parameters are created.
            remat = self.remat and not self.is_initializing()
            one_by_one = _cached_one_by_one if is_cacheable(run) else _one_by_one
            run = one_by_one(run, remat)
        return compiled_once(run) if is_cacheable(run) else run

    @property
    def recurrence(self) -> Function:
        """The `Recurrence` or `StackRecurrence` that `implementation` names."""
        ways: dict[str, Function] = {
            **self.implementations,
            **self.stack_implementations,
        }
        return ways[self.implementation]

    @nn.nowrap
    def depends_on(self) -> Hashable:
        """What a `cacheable` implementation depends on besides its arguments."""
        return dependencies_of(self.recurrence)(self)

    @nn.nowrap
    def _drop_out(self, x):
        # Flax's Dropout takes the stream `params` where there is none for dropout.
        if not (self.has_rng("dropout") or self.has_rng("params")):
            raise ValueError(
                f"rngs: expected a key for dropout={self.dropout} with "
                f"deterministic=False, got none; pass rngs={{'dropout': key}}"
            )
        drop_out = nn.Dropout(self.dropout)
        kept = 1 - float(self.dropout)
        if not (kept and any(jax.typeof(x).sharding.spec)):
            return drop_out(x, deterministic=False)
        # Flax draws the mask without the explicit sharding that `x` has.
        mask = drop_out(jnp.ones(x.shape, x.dtype), deterministic=False) != 0
        return masked(mask, x / kept)

    @nn.nowrap
    def checked_input(
        self, input: Any, seq_lengths: Any
    ) -> tuple[jax.Array, jax.Array | None]:
        """The input as an array, and (B,) int32 or None; see `run`."""
        x = check.as_floating_array("input", input)
        time = 1 if self.batch_first and x.ndim == 3 else 0
        check.require_input_shape("input", x, self.input_size, time)
        if seq_lengths is None:
            return x, None
        steps = x.shape[time]
        return x, check.as_lengths(seq_lengths, x.shape, self._batch_of(x), steps)

    @nn.nowrap
    def _refuse_foreign_weights(self):
        params = self.variables.get("params", {})
        layers = [name for names in self._layer_names for name in names]
        require_params(self.variables, layers)
        options = ("num_layers", "bidirectional", "bias", "proj_size")
        given = {name: getattr(self, name) for name in options if hasattr(self, name)}
        # A user's own cell need not have a layout.
        layout = getattr(self.cell_class, "torch_layout", None)
        refuse_foreign_weights(params, layers, given, layout)

    @nn.nowrap
    def _batch_of(self, x):
        """B; an unbatched input counts as one row."""
        if x.ndim == 2:
            return 1
        return x.shape[0 if self.batch_first else 1]

    @nn.nowrap
    def _checked_state(self, hx, x):
        """The user's state as floating arrays of the right shapes, or None."""
        if hx is None:
            return None
        batch = self._batch_of(x)
        names = tuple(f"{name}_0" for name in self.cell_class.state_names)
        state = check.as_states(names, hx)
        num_cells = self._num_cells
        arrays = []
        for name, size, value in zip(names, self.state_sizes, state, strict=True):
            array = check.as_floating_array(name, value)
            lead = (num_cells, batch) if x.ndim == 3 else (num_cells,)
            expected = (*lead, size)
            check.require_shape(name, array, expected)
            arrays.append(array)
        return tuple(arrays)

    @nn.nowrap
    def computation_dtype(self, x: jax.Array, state: State | None = None) -> Any:
        """`dtype` if set; else what input, hidden state and parameters promote to.

        The cell state is left out: with bfloat16 it is float32 anyway. Parameters that
        do not exist yet count as `param_dtype`.
        """
        if self.dtype is not None:
            return self.dtype
        hidden = () if state is None else (state[0],)
        trees = self.variables.get("params", {})
        layers = [name for names in self._layer_names for name in names]
        params = {name: trees[name] for name in layers if name in trees}
        check.require_weights("params", params)
        weights = jax.tree.leaves(params) or [self.param_dtype]
        return jnp.result_type(x, *hidden, *weights)


def _one_by_one(recur: Recurrence, remat: bool) -> StackRecurrence:
    return layer_by_layer(remat_over_time(recur) if remat else recur)


_cached_one_by_one = functools.cache(_one_by_one)
