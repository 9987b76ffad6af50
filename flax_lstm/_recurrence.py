"""Running one cell over time: the replaceable part of a stack.

Every implementation reads the same parameters and gives the same results. A stack lists
those that fit its cell in `RecurrentStack.implementations`.
"""

from collections.abc import Callable
from typing import Any, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp

from flax_lstm._cell import Carry
from flax_lstm._compiled_once import cacheable, compiled_once


class Recurrence(Protocol):
    """Runs a cell over time; see `scan_over_time`, which is one."""

    def __call__(
        self,
        cell: Any,
        carry: Carry,
        inputs: jax.Array,
        *,
        valid: jax.Array | None,
        reverse: bool,
    ) -> tuple[Carry, jax.Array]: ...


@cacheable()
def scan_over_time(
    cell: Any,
    carry: Carry,
    inputs: jax.Array,
    *,
    valid: jax.Array | None,
    reverse: bool,
) -> tuple[Carry, jax.Array]:
    """One `nn.scan` over the cell, a step at a time.

    Args:
        cell: a bound Linen module that follows `StackableCell`.
        carry: the cell's state before the first step; leaves (B, …).
        inputs: (T, B, I). Where `valid` is False they must be finite.
        valid: (T, B) bool, or None if every step of every row counts. A step that
            is not valid leaves its row's carry alone and outputs zero, so in the
            reverse direction each row starts at its own last valid step.
        reverse: run from step T-1 down to step 0.

    Returns:
        The carry after the last step, and the outputs (T, B, P), where output t
        belongs to input t in both directions.
    """
    carry = with_varying_axes_of(carry, (inputs, valid, cell.variables))

    def step(cell, carry, step_inputs):
        x, is_valid = step_inputs
        new_carry, y = cell(carry, x)
        if is_valid is not None:
            keep = is_valid[:, None]
            new_carry = jax.tree.map(
                lambda new, old: jnp.where(keep, new, old), new_carry, carry
            )
            y = jnp.where(keep, y, jnp.zeros_like(y))
        return new_carry, y

    scan = nn.scan(
        step,
        variable_broadcast="params",
        split_rngs={"params": False},
        reverse=reverse,
    )
    scan = with_varying_parameters(scan, cell, carry)
    return scan(cell, carry, (inputs, valid))


# Identical layers are traced once.
scan_compiled_once = compiled_once(scan_over_time, static=("reverse",), named=False)


def with_varying_parameters(
    run: Callable[..., Any], cell: Any, carry: Carry
) -> Callable[..., Any]:
    """`run(cell, …)`, a scan, with parameters that vary over `carry`'s mesh axes.

    Inside `jax.shard_map`, the gradient of a parameter that all shards share is summed
    over the shards where it meets a shard's own rows: at every step, if that is in the
    scan, and once if it is before.
    """
    varies = any(map(_varying_axes, jax.tree.leaves(carry)))
    if cell.is_initializing() or not varies:
        return run
    return nn.map_variables(
        run, "params", trans_in_fn=lambda params: with_varying_axes_of(params, carry)
    )


def with_varying_axes_of(carry: Carry, others: Any) -> Carry:
    """`carry`, made to vary over every mesh axis that any of `others` varies over.

    Inside `jax.shard_map` a scan's carry must have the same varying axes before
    and after a step. Zeros, or a state given to all shards, vary over none, while
    one step mixes them with the shard's own rows. Outside of shard_map every set
    of axes is empty and nothing is done.
    """
    leaves = jax.tree.leaves((carry, others))
    axes = frozenset().union(*map(_varying_axes, leaves))

    def cast(leaf):
        missing = tuple(sorted(axes - _varying_axes(leaf)))
        return jax.lax.pcast(leaf, missing, to="varying") if missing else leaf

    return jax.tree.map(cast, carry)


def _varying_axes(array: jax.Array) -> frozenset[str]:
    return jax.typeof(array).manual_axis_type.varying
