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


# Sizes at and beside those of a register, a tile of rows, a panel of columns, a chunk
# of rows, the depth of a panel; and enough weights for units to be shared out.
SIZES = {
    "one": (1, 1, 1, 1),
    "below_a_register": (3, 2, 3, 5),
    "a_register": (2, 6, 16, 16),
    "beside_a_panel": (3, 7, 65, 63),
    "no_multiple": (4, 13, 17, 33),
    "beside_a_chunk": (3, 43, 5, 17),
    "many_rows": (2, 200, 4, 20),
    "beyond_a_depth": (2, 7, 9, 150),
    "large_weights_of_many_steps_in_place": (20, 5, 70, 190),
    "shared_units": (3, 9, 70, 192),
    "shared_units_of_one_row": (4, 1, 8, 200),
    "large_weights_in_place": (3, 5, 70, 190),
    "shared_units_of_fewer_rows": (20, 5, 28, 128),
    "weights_in_place": (4, 3, 28, 128),
    "more_steps_than_are_multiplied_ahead": (40, 9, 70, 192),
}

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


def derivatives(loss, variables, x, hx):
    """By every way that JAX has to them, of the input as well: as of a layer below."""
    given = variables, x

    def of(given):
        return loss(*given, hx)[0]

    ones = jax.tree.map(jnp.ones_like, given)

    def along(f):
        return jax.jvp(f, (given,), (ones,))[1]

    def summed_gradient(given):
        return sum(map(jnp.sum, jax.tree.leaves(jax.grad(of)(given))))

    def of_row(x, hx):
        hx = jax.tree.map(lambda state: state[:, None], hx)
        return jax.grad(lambda v: loss(v, x[:, None], hx)[0])(variables)

    return {
        "forward": along(of),
        "forward_over_reverse": along(jax.grad(of)),
        "reverse_over_reverse": jax.grad(summed_gradient)(given),
        "reverse_over_forward": jax.grad(lambda g: jax.jvp(of, (g,), (ones,))[1])(
            given
        ),
        "of_every_row": jax.vmap(of_row, in_axes=1)(x, hx),
        "of_an_ensemble": jax.grad(lambda g: jax.vmap(of)(g).sum())(
            jax.tree.map(lambda leaf: jnp.stack([leaf, -leaf]), given)
        ),
        "of_a_gradient_by_its_cotangent": jax.grad(
            lambda scale: sum(
                map(jnp.sum, jax.tree.leaves(jax.vjp(of, given)[1](scale)))
            )
        )(1.0),
        "checkpointed": jax.grad(jax.checkpoint(of))(given),
    }
