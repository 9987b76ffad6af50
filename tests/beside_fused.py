"""What the native loops and kernels are held against: fused ones, and a GRU's scan."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from kinds import packed, unpacked

from flax_lstm import StackedGRU, StackedLSTM

# Other orders of the same float32 sums, times the largest number of an array.
TOLERANCE = 1e-5


BESIDE = {StackedLSTM: "fused", StackedGRU: "scan"}


def setting(steps, batch, inputs, units, *, kind=StackedLSTM, lengths=False, **options):
    """The same stack by loops and beside them, and what a loss of both takes."""
    by_loops = kind(inputs, units, **options, implementation="native")
    beside = by_loops.clone(implementation=BESIDE[kind])
    keys = iter(jax.random.split(jax.random.key(0), 5))
    x = jax.random.normal(next(keys), (steps, batch, inputs))
    rows = by_loops.num_layers * (2 if by_loops.bidirectional else 1)
    states = by_loops.cell_class.state_names
    hx = packed([jax.random.normal(next(keys), (rows, batch, units)) for _ in states])
    rng = np.random.default_rng(0)
    counts = rng.integers(0, steps + 1, batch) if lengths else None
    variables = beside.init(next(keys), x)

    def loss(stack):
        def of(variables, x, hx):
            of_rows = None if counts is None else counts[: x.shape[1]]
            y, state = stack.apply(variables, x, hx, seq_lengths=of_rows)
            h, c = unpacked(state)[0], unpacked(state)[-1]
            return (jnp.sin(y).sum() + (h * c).sum()), (y, h, c)

        return of

    return loss(by_loops), loss(beside), (variables, x, hx)


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
