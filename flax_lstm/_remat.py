"""Less memory for a long sequence: save few states, recompute the rest."""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from flax_lstm._cell import Carry
from flax_lstm._compiled_once import cacheable_like
from flax_lstm._recurrence import (
    Recurrence,
    with_varying_axes_of,
    with_varying_parameters,
)


def remat_over_time(recur: Recurrence) -> Recurrence:
    """`recur` in stretches of ⌈√T⌉ steps, of which only the carries are kept.

    The backward pass runs each stretch a second time, so what is saved besides the
    layer's inputs and outputs grows with √T instead of T.
    """

    @cacheable_like(recur)
    def run(
        cell: Any,
        carry: Carry,
        inputs: jax.Array,
        *,
        valid: jax.Array | None,
        reverse: bool,
    ) -> tuple[Carry, jax.Array]:
        carry = with_varying_axes_of(carry, (inputs, valid, cell.variables))

        def stretch(cell, carry, steps):
            inputs, valid = steps
            return recur(cell, carry, inputs, valid=valid, reverse=reverse)

        # Inside a scan the loop itself keeps XLA from merging the two passes.
        in_scan = nn.remat(stretch, prevent_cse=False)
        alone = nn.remat(stretch)
        scan = nn.scan(
            in_scan,
            variable_broadcast="params",
            split_rngs={"params": False},
            reverse=reverse,
        )
        steps = inputs.shape[0]
        if not isinstance(steps, int):
            raise ValueError(
                f"remat: expected a known number of steps, since its square root is "
                f"needed, got the symbolic {steps}"
            )
        length = math.isqrt(steps - 1) + 1
        whole = steps // length * length

        def stretches(array):
            return array[:whole].reshape(steps // length, length, *array.shape[1:])

        def run_whole(cell, carry):
            carry, y = scan(cell, carry, jax.tree.map(stretches, (inputs, valid)))
            return carry, y.reshape(whole, *y.shape[2:])

        def run_rest(cell, carry):
            rest = jax.tree.map(lambda array: array[whole:], (inputs, valid))
            return alone(cell, carry, rest)

        def run_all(cell, carry):
            if whole == steps:
                return run_whole(cell, carry)
            if reverse:
                carry, y_rest = run_rest(cell, carry)
                carry, y_whole = run_whole(cell, carry)
            else:
                carry, y_whole = run_whole(cell, carry)
                carry, y_rest = run_rest(cell, carry)
            return carry, jnp.concatenate([y_whole, y_rest])

        return with_varying_parameters(run_all, cell, carry)(cell, carry)

    return run
