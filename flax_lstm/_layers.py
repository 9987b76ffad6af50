"""Several layers one after another, each in its directions.

A stack lists those functions that run several layers in one library call in
`RecurrentStack.stack_implementations`.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from flax_lstm._cell import State
from flax_lstm._compiled_once import cacheable_like
from flax_lstm._recurrence import Recurrence


class StackRecurrence(Protocol):
    """Runs layers one after another; see `layer_by_layer`, which returns one."""

    def __call__(
        self,
        layers: Sequence[Sequence[Any]],
        state: State,
        inputs: jax.Array,
        *,
        valid: jax.Array | None,
    ) -> tuple[jax.Array, State]: ...


def layer_by_layer(recur: Recurrence) -> StackRecurrence:
    """Layers that are run over time by `recur`, each direction by itself."""

    @cacheable_like(recur)
    def run(
        layers: Sequence[Sequence[Any]],
        state: State,
        inputs: jax.Array,
        *,
        valid: jax.Array | None,
    ) -> tuple[jax.Array, State]:
        """One layer after another.

        Args:
            layers: L layers of D cells each, the reverse direction last.
            state: the initial states; (L·D, B, ·) each, in torch's order.
            inputs: (T, B, I).
            valid: (T, B) bool or None, as in `scan_over_time`.

        Returns:
            The last layer's outputs (T, B, D·P), and the states as in `state`.
        """
        final_states: list[State] = []
        x = inputs
        for cells in layers:
            outputs = []
            for direction, cell in enumerate(cells):
                row = len(final_states)
                carry = cell.to_carry(tuple(array[row] for array in state))
                with jax.named_scope(cell.name):
                    if cell.is_initializing():
                        # Flax creates the parameters in a call. One step is enough,
                        # and then the layer is run as it will be with them.
                        cell(carry, x[0])
                    carry, y = recur(
                        cell, carry, x, valid=valid, reverse=bool(direction)
                    )
                outputs.append(y)
                final_states.append(cell.to_state(carry))
            x = jnp.concatenate(outputs, axis=-1) if len(outputs) > 1 else outputs[0]
        return x, tuple(jnp.stack(arrays) for arrays in zip(*final_states, strict=True))

    return run
