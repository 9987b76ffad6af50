"""What a cell must offer so that the stack can run it.

The stack (`_stack.py`) knows nothing about gates. A new kind of cell is one file with
a subclass of `flax.linen.RNNCellBase` that has these members besides `__call__`.
"""

from typing import Any, ClassVar, Protocol, Self

import jax
from jax.typing import DTypeLike

Carry = Any
"""A cell's own state in Flax's order, as `__call__` takes and returns it."""

State = tuple[jax.Array, ...]
"""The same state as a tuple in torch's order, one array for each state name."""


class StackableCell(Protocol):
    """One time step of one layer in one direction.

    Axis letters, here and in every docstring of the package:

    - `B` batch, `T` time, `I` input_size, `H` hidden_size
    - `P` width of the hidden state and the output: proj_size if it is set, else H
    - `L` layers, `D` directions (2 if bidirectional, else 1)
    """

    state_names: ClassVar[tuple[str, ...]]
    """torch's names of the state arrays, in torch's order: `('h', 'c')`."""

    @staticmethod
    def state_sizes(hidden_size: int, proj_size: int) -> tuple[int, ...]:
        """Width of each state array, in the order of `state_names`."""
        ...

    @staticmethod
    def state_dtypes(dtype: DTypeLike) -> tuple[DTypeLike, ...]:
        """Dtype of each state array when the step is computed in `dtype`."""
        ...

    @staticmethod
    def to_carry(state: State) -> Carry:
        """From torch's order to the cell's own."""
        ...

    @staticmethod
    def to_state(carry: Carry) -> State:
        """From the cell's own order to torch's."""
        ...

    def __call__(
        self: Self, carry: Carry, inputs: jax.Array
    ) -> tuple[Carry, jax.Array]:
        """One step: (carry, inputs (B, I)) to (new carry, output (B, P))."""
        ...


class HiddenStateCell:
    """All of `StackableCell` but `__call__`, for a cell whose only state is h.

    The carry is h itself. Among a cell's bases this class has to precede Flax's.
    """

    state_names: ClassVar[tuple[str, ...]] = ("h",)

    @staticmethod
    def state_sizes(hidden_size: int, proj_size: int) -> tuple[int, ...]:
        del proj_size  # torch can project the hidden state of an LSTM only.
        return (hidden_size,)

    @staticmethod
    def state_dtypes(dtype: DTypeLike) -> tuple[DTypeLike, ...]:
        return (dtype,)

    @staticmethod
    def to_carry(state: State) -> jax.Array:
        (h,) = state
        return h

    @staticmethod
    def to_state(carry: jax.Array) -> State:
        return (carry,)
