"""What the native loops and kernels are held against: the fused implementation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from flax_lstm import StackedLSTM

# Other orders of the same float32 sums, times the largest number of an array.
TOLERANCE = 1e-5


def setting(steps, batch, inputs, units, *, lengths=False, **options):
    """The same stack by loops and fused, and what a loss of both takes."""
    by_loops = StackedLSTM(inputs, units, **options, implementation="native")
    fused = by_loops.clone(implementation="fused")
    keys = iter(jax.random.split(jax.random.key(0), 5))
    x = jax.random.normal(next(keys), (steps, batch, inputs))
    rows = by_loops.num_layers * (2 if by_loops.bidirectional else 1)
    hx = tuple(jax.random.normal(next(keys), (rows, batch, units)) for _ in "hc")
    rng = np.random.default_rng(0)
    counts = rng.integers(0, steps + 1, batch) if lengths else None
    variables = fused.init(next(keys), x)

    def loss(stack):
        def of(variables, x, hx):
            of_rows = None if counts is None else counts[: x.shape[1]]
            y, (h, c) = stack.apply(variables, x, hx, seq_lengths=of_rows)
            return (jnp.sin(y).sum() + (h * c).sum()), (y, h, c)

        return of

    return loss(by_loops), loss(fused), (variables, x, hx)


def slow_but(sizes, names):
    """Parameters of all `sizes`, by name, of which some are in the default run."""
    return [
        pytest.param(size, id=name, marks=() if name in names else pytest.mark.slow)
        for name, size in sizes.items()
    ]


def mesh_of_cpus():
    devices = jax.devices("cpu")
    n = max(n for n in (1, 2, 4) if n <= len(devices))
    return jax.make_mesh(
        (n,), ("rows",), axis_types=(AxisType.Auto,), devices=devices[:n]
    )


def assert_close(got, expected):
    def check(got, expected):
        bound = TOLERANCE * max(1e-3, np.abs(expected).max(initial=0))
        np.testing.assert_allclose(got, expected, rtol=0, atol=bound)

    jax.tree.map(check, got, expected)


def value_and_gradients(loss):
    return jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))
