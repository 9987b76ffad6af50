"""Classifiers: a stack, its outputs pooled into one vector, and a dense head."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike

from flax_lstm import _validation as check
from flax_lstm._compiled_once import cacheable, compiled_once, is_cacheable
from flax_lstm._foreign_weights import refuse_foreign_parts, require_params
from flax_lstm._gru import StackedGRU
from flax_lstm._initializers import torch_uniform
from flax_lstm._lstm import StackedLSTM
from flax_lstm._pooling import AttentionPooling, last_step, mean_over_steps
from flax_lstm._rnn import StackedRNN
from flax_lstm._stack import SIZES, RecurrentStack, warn_of_idle_dropout

POOLINGS = ("last", "final", "mean", "attention")
"""The ways in which a classifier pools the outputs of all steps into one vector."""


class SequenceClassifier(nn.Module, kw_only=True):
    """Base class of the classifiers; each declares its stack's options and builds it.

    Options that torch does not have are declared here, as keyword-only arguments, as in
    the stacks.

    Raises:
        TypeError: this class itself is instantiated instead of a subclass.

    Example:
        >>> from flax_lstm import GRUClassifier, SequenceClassifier
        >>> isinstance(GRUClassifier(), SequenceClassifier)
        True

    Source: the classifier of the study notes behind this project, see `LSTMClassifier`.
    """

    pooling: str = "last"
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32
    implementation: str = "auto"
    remat: bool = False

    cell: ClassVar[str]
    """Name of the cell in checkpoints, and of the stack in the parameter tree."""

    if TYPE_CHECKING:  # Declared by each subclass, in the order of its torch class.
        num_classes: int
        input_size: int
        hidden_size: int
        num_layers: int
        bias: bool
        batch_first: bool
        dropout: float
        bidirectional: bool

    stack_class: ClassVar[type[RecurrentStack]]
    """The stack's class; this module's fields of the same names are its options."""

    @nn.nowrap  # As in `RecurrentStack`.
    def make_stack(self, **options: Any) -> RecurrentStack:
        """The stack with these `options`: the fields that it and this module share."""
        return self.stack_class(**options)

    def __post_init__(self) -> None:
        if not hasattr(self, "cell"):
            raise TypeError(
                "SequenceClassifier: expected one of its subclasses LSTMClassifier, "
                "GRUClassifier or RNNClassifier, got the base class itself"
            )
        check.require_positive_int("num_classes", self.num_classes)
        check.require_probability("dropout", self.dropout)
        check.require_one_of("pooling", self.pooling, POOLINGS)
        # The stack checks all other options.
        self._stack(parent=None)
        check.as_ints(self, ("num_classes", *SIZES))
        warn_of_idle_dropout(self)
        super().__post_init__()

    @nn.compact
    def __call__(
        self,
        input: "ArrayLike",
        *,
        seq_lengths: "ArrayLike | Sequence[int] | None" = None,
        deterministic: bool = True,
    ) -> jax.Array:
        """Logits of a batch of sequences.

        Args:
            input: (B, T, I) if batch_first, else (T, B, I); or unbatched (T, I);
                floating-point.
            seq_lengths: (B,) integers within [0, T], or None.
            deterministic: False applies dropout, which needs
                `rngs={'dropout': key}`.

        Returns:
            (B, num_classes), or (num_classes,) for (T, I), in the dtype of the
            computation.

        Raises:
            TypeError, ValueError: as the stack does.
        """
        check.require_bool("deterministic", deterministic)
        require_params(self.variables, (self.cell, "head"))
        stack = self._stack(name=self.cell)
        attention = None
        params = self.variables.get("params", {})
        refuse_foreign_parts(params, self.cell, self.pooling)
        if self.pooling == "attention":
            attention = AttentionPooling(param_dtype=self.param_dtype, name="attention")
        options = {"pooling": self.pooling, "deterministic": deterministic}
        known = type(stack) in _STACKS and is_cacheable(stack.recurrence)
        if not known or (stack.dropout > 0 and not deterministic):
            parts = stack, attention
            pooled = _pooled(parts, input, seq_lengths, **options)
            return self._head(pooled.shape[-1], pooled.dtype)(pooled)
        x, lengths = stack.checked_input(input, seq_lengths)
        head = self._head(stack.output_size, stack.computation_dtype(x))
        run = compiled_once(_logits, static=tuple(options))
        return run((stack, attention, head), x, lengths, **options)

    @nn.nowrap
    def _head(self, width: int, dtype: DTypeLike) -> nn.Dense:
        init = torch_uniform(width)
        return nn.Dense(
            self.num_classes,
            kernel_init=init,
            bias_init=init,
            dtype=dtype,
            param_dtype=self.param_dtype,
            name="head",
        )

    @nn.nowrap
    def _stack(self, **linen: Any) -> RecurrentStack:
        known = {field.name for field in dataclasses.fields(self.stack_class)}
        known -= {"parent", "name"}
        names = [f.name for f in dataclasses.fields(self) if f.name in known]
        options = {name: getattr(self, name) for name in names}
        if self.num_layers == 1:
            # It does nothing then, and this class has already warned of that.
            options["dropout"] = 0.0
        return self.make_stack(**options, **linen)


# Stacks whose calls depend on nothing beyond what `RecurrentStack.depends_on` returns;
# a user's own stack may depend on anything.
_STACKS = (StackedLSTM, StackedGRU, StackedRNN)


@cacheable(depends_on=lambda parts: parts[0].depends_on())
def _logits(parts, x, lengths, **options):
    """The logits (B, K) of `parts`: stack, `AttentionPooling` or None, dense head."""
    *parts, head = parts
    return head(_pooled(parts, x, lengths, **options))


def _pooled(parts, input, seq_lengths, *, pooling, deterministic):
    """The outputs pooled into one vector; `parts` is a stack, and a pooling or None."""
    stack, attention = parts
    output, state = stack(input, seq_lengths=seq_lengths, deterministic=deterministic)
    if pooling == "final" or (pooling == "last" and not stack.bidirectional):
        # In one direction the last output is the final state. Read from the state,
        # XLA needs neither the top layer's outputs nor their gradient.
        h_n, *_ = jax.tree.leaves(state)
        directions = (h_n[-2], h_n[-1]) if stack.bidirectional else (h_n[-1],)
        return jnp.concatenate(directions, axis=-1)
    if stack.batch_first and output.ndim == 3:
        output = output.swapaxes(0, 1)
    lengths = seq_lengths
    if lengths is not None:
        steps, batch = output.shape[:2]
        lengths = check.as_lengths(lengths, output.shape, batch, steps)
    pool = {"last": last_step, "mean": mean_over_steps, "attention": attention}
    return pool[pooling](output, lengths)


class LSTMClassifier(SequenceClassifier):
    """Classifies a sequence by a dense layer on the pooled outputs of a `StackedLSTM`.

    The defaults are the model for MNIST, read row by row, of the study notes behind
    this project: 28 steps of 28 pixels, two layers of 128 units, ten classes, and the
    last output. Axis letters as in `StackedLSTM`.

    Args:
        num_classes: number of logits.
        pooling: how the outputs of all steps become one vector. `'last'`: the last
            step's output, torch's `output[:, -1, :]`, whose reverse half has read one
            step only. `'final'`: each direction's final state, torch's
            `torch.cat([h_n[-2], h_n[-1]], dim=1)`; with one direction, the same as
            `'last'`. `'mean'`: the mean over the steps. `'attention'`: the mean over
            the steps weighted by a softmax of tanh(W h_t + b) · q, with one learned
            query q (Yang et al. 2016). With `seq_lengths`, each row pools over its own
            valid steps only; a row without any gives zeros.

    The other options are those of `StackedLSTM`: input_size, hidden_size, num_layers,
    bias, batch_first, dropout, bidirectional, proj_size, dtype, param_dtype,
    implementation and remat. The initializers and forget_bias are not options here; a
    subclass that declares a field of such a name passes it on.

    Parameters (under `'params'`): `lstm`, the tree of `StackedLSTM`, and
    `head/{kernel,bias}` of shapes (D·P, num_classes) and (num_classes,), initialised
    like torch.nn.Linear's, from U(-1/√(D·P), 1/√(D·P)). With `pooling='attention'`
    also `attention/projection/{kernel,bias}` (D·P, D·P) and (D·P,) and
    `attention/query/kernel` (D·P, 1), initialised in the same way.

    Raises:
        ValueError, TypeError: an option is out of its range or of the wrong type.

    Warns:
        UserWarning: dropout > 0 with one layer, where it does nothing.

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

    Source of the attention: https://aclanthology.org/N16-1174
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

    cell: ClassVar[str] = "lstm"
    stack_class: ClassVar[type[RecurrentStack]] = StackedLSTM


class GRUClassifier(SequenceClassifier):
    """`LSTMClassifier` with a `StackedGRU`, and with that stack's options.

    Args:
        num_classes: number of logits.
        pooling: see `LSTMClassifier`.

    The other options are those of `StackedGRU`: input_size, hidden_size, num_layers,
    bias, batch_first, dropout, bidirectional, dtype, param_dtype,
    implementation and remat. Their defaults are those of `LSTMClassifier`.

    Parameters (under `'params'`): `gru`, the tree of `StackedGRU`, and the others as in
    `LSTMClassifier`.

    Raises:
        ValueError, TypeError: an option is out of its range or of the wrong type.

    Warns:
        UserWarning: dropout > 0 with one layer, where it does nothing.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from flax_lstm import GRUClassifier
        >>> model = GRUClassifier(pooling='mean')
        >>> images = jnp.zeros((5, 28, 28))
        >>> variables = model.init(jax.random.key(0), images)
        >>> lengths = jnp.array([28, 9, 0, 1, 2])
        >>> model.apply(variables, images, seq_lengths=lengths).shape
        (5, 10)

    Source: https://docs.pytorch.org/docs/stable/generated/torch.nn.GRU.html, and
    those of `LSTMClassifier`.
    """

    num_classes: int = 10
    input_size: int = 28
    hidden_size: int = 128
    num_layers: int = 2
    bias: bool = True
    batch_first: bool = True
    dropout: float = 0.0
    bidirectional: bool = False

    cell: ClassVar[str] = "gru"
    stack_class: ClassVar[type[RecurrentStack]] = StackedGRU


class RNNClassifier(SequenceClassifier):
    """`LSTMClassifier` with a `StackedRNN`, and with that stack's options.

    Args:
        num_classes: number of logits.
        pooling: see `LSTMClassifier`.

    The other options are those of `StackedRNN`: input_size, hidden_size, num_layers,
    nonlinearity, bias, batch_first, dropout, bidirectional, dtype, param_dtype,
    implementation and remat. Their defaults are those of `LSTMClassifier`.

    Parameters (under `'params'`): `rnn`, the tree of `StackedRNN`, and the others as in
    `LSTMClassifier`.

    Raises:
        ValueError, TypeError: an option is out of its range or of the wrong type.

    Warns:
        UserWarning: dropout > 0 with one layer, where it does nothing.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from flax_lstm import RNNClassifier
        >>> model = RNNClassifier(nonlinearity='relu')
        >>> images = jnp.zeros((5, 28, 28))
        >>> variables = model.init(jax.random.key(0), images)
        >>> model.apply(variables, images).shape
        (5, 10)

    Source: https://docs.pytorch.org/docs/stable/generated/torch.nn.RNN.html, and
    those of `LSTMClassifier`.
    """

    num_classes: int = 10
    input_size: int = 28
    hidden_size: int = 128
    num_layers: int = 2
    nonlinearity: str = "tanh"
    bias: bool = True
    batch_first: bool = True
    dropout: float = 0.0
    bidirectional: bool = False

    cell: ClassVar[str] = "rnn"
    stack_class: ClassVar[type[RecurrentStack]] = StackedRNN


CLASSIFIERS: Mapping[str, Callable[..., SequenceClassifier]] = {
    kind.cell: kind for kind in (LSTMClassifier, GRUClassifier, RNNClassifier)
}
"""The classifiers by the name of their cell."""
