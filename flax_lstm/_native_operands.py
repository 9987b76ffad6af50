"""The native primitives' arguments by name; a primitive takes them as a flat list.

That list has the order of native/lstm.cc: the fields' order, one array per gate. What
is None is not in it.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax

from flax_lstm._fused_lstm import Kept
from flax_lstm._lstm_weights import GATES, Weights

NUM_GATES = len(GATES)


class Layer(NamedTuple):
    """A layer's inputs, weights and initial state, or a tangent of each."""

    x: Any  # (T, B, I)
    weights: Weights
    h_0: Any  # (B, H)
    c_0: Any  # (B, H)


class Run(NamedTuple):
    """What the derivatives need of a layer that has run."""

    x: Any  # (T, B, I)
    kernels: Weights  # Without biases.
    h_0: Any  # (B, H)
    y: Any  # (T, B, H)
    kept: Kept


class Gradients(NamedTuple):
    """Gradients of a layer's results, or those results."""

    y: Any  # (T, B, H)
    h_n: Any  # (B, H)
    c_n: Any  # (B, H)


_ARRAY: Any = 0  # Stands for one.
_EACH = (_ARRAY,) * NUM_GATES
_KEPT = Kept(i=_ARRAY, f=_ARRAY, g=_ARRAY, o=_ARRAY, c=_ARRAY, m=None)
_LAYER = Layer(_ARRAY, Weights(_EACH, _EACH, _EACH, None), _ARRAY, _ARRAY)
_RUN = Run(_ARRAY, Weights(_EACH, _EACH, None, None), _ARRAY, _ARRAY, _KEPT)
_GRADIENTS = Gradients(_ARRAY, _ARRAY, _ARRAY)


def _count(tree: Any) -> int:
    return len(jax.tree.leaves(tree))


NUM_OF_RUN = _count(_RUN)
NUM_OF_GRADIENTS = _count(_GRADIENTS)
# The gates among the arrays of `Run`, where what is kept comes last.
GATES_OF_RUN = range(NUM_OF_RUN - _count(_KEPT), NUM_OF_RUN)[:NUM_GATES]


def num_of_tangents(needs_x: bool) -> int:
    return _count(_layer(needs_x))


def flat(*parts: Any) -> list[Any]:
    """The arrays of `parts` in a primitive's order."""
    return jax.tree.leaves(parts)


def of_forward(arrays: Sequence[Any]) -> tuple[Layer, Any]:
    """`Layer` and `valid` (T, B), or None, of a forward primitive's arguments."""
    layer, valid = _named((_LAYER,), arrays)
    return layer, valid


def of_tangents(arrays: Sequence[Any], needs_x: bool) -> tuple[Run, Layer, Any]:
    """`Run`, tangents (of x None, unless `needs_x`) and `valid` of `tangents_p`'s."""
    run, tangents, valid = _named((_RUN, _layer(needs_x)), arrays)
    return run, tangents, valid


def of_backward(arrays: Sequence[Any]) -> tuple[Run, Gradients, Any]:
    """`Run`, `Gradients` and `valid` of `backward_p`'s."""
    run, gradients, valid = _named((_RUN, _GRADIENTS), arrays)
    return run, gradients, valid


def _layer(needs_x: bool) -> Layer:
    return _LAYER if needs_x else _LAYER._replace(x=None)


def _named(parts: tuple[Any, ...], arrays: Sequence[Any]) -> tuple[Any, ...]:
    """`arrays` as `parts` have them, and then `valid`, which may be missing."""
    arrays, rest = list(arrays[: _count(parts)]), list(arrays[_count(parts) :])
    (valid,) = rest or (None,)
    return *jax.tree.unflatten(jax.tree.structure(parts), arrays), valid
