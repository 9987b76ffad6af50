"""The native loops under `jax.vmap`: more rows, or the reference."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from beside_fused import assert_close, mesh_of_cpus, slow_but
from jax.sharding import AxisType, NamedSharding, PartitionSpec as Spec

from flax_lstm import StackedLSTM

N, T, B, I, H = 4, 5, 3, 4, 6  # noqa: E741
L, D = 2, 2
KEY = jax.random.key(0)

# Which of variables, x, states and lengths are mapped, and along which axis.
MAPPED = {
    "models": (0, None, None, None),
    "inputs": (None, 2, None, None),
    "states": (None, None, 1, None),
    "lengths": (None, None, None, 1),
    "inputs_and_lengths": (None, 0, None, 0),
    "models_and_inputs": (0, 1, None, None),
    "all": (0, 0, 0, 0),
}


@pytest.fixture(autouse=True)
def on_a_cpu():
    """Also where there is a GPU, which has no such loops."""
    with jax.default_device(jax.devices("cpu")[0]):
        yield


def stack(implementation):
    return StackedLSTM(*(I, H, L), bidirectional=D > 1, implementation=implementation)


def drawn(axes):
    """Variables, x, states and lengths, N of what is mapped."""
    model, x = stack("fused"), jnp.ones((T, B, I))
    shapes = [
        jax.eval_shape(model.init, KEY, x),
        jax.ShapeDtypeStruct((T, B, I), jnp.float32),
        (jax.ShapeDtypeStruct((L * D, B, H), jnp.float32),) * 2,
    ]
    rng = np.random.default_rng(0)

    def draw(axis, leaf):
        shape = list(leaf.shape)
        if axis is not None:
            shape.insert(axis, N)
        return rng.standard_normal(shape).astype(np.float32)

    lengths = rng.integers(0, T + 1, (N, B))
    lengths = lengths[0] if axes[3] is None else np.moveaxis(lengths, 0, axes[3])
    floats = [
        jax.tree.map(partial(draw, axis), tree)
        for axis, tree in zip(axes, shapes, strict=False)
    ]
    return *floats, lengths


def loss(implementation, variables, x, hx, lengths):
    y, (h, c) = stack(implementation).apply(variables, x, hx, seq_lengths=lengths)
    return jnp.sin(y).sum() + (h * c).sum(), (y, h, c)


def mapped(implementation, axes):
    return jax.vmap(partial(loss, implementation), axes)


def of_each(implementation, axes):
    """Every member's own gradient."""
    gradient = jax.grad(partial(loss, implementation), (0, 1, 2), has_aux=True)
    return jax.vmap(gradient, axes)


def of_all(implementation, axes):
    """The gradient of the members' sum."""

    def total(*arguments):
        losses, results = mapped(implementation, axes)(*arguments)
        return losses.sum(), results

    return jax.grad(total, (0, 1, 2), has_aux=True)


@pytest.mark.parametrize("derivative", [of_each, of_all])
@pytest.mark.parametrize(
    "axes", slow_but(MAPPED, ("models", "inputs_and_lengths", "all"))
)
def test_results_and_gradients_of_every_member(axes, derivative, native):
    arguments = drawn(axes)
    got = jax.jit(derivative("native", axes))(*arguments)
    assert_close(got, jax.jit(derivative("fused", axes))(*arguments))


def test_outside_of_jit_and_one_vmap_in_another(native):
    variables, xs, _, _ = drawn((0, 0, None, None))

    def outputs(implementation, variables, x):
        return stack(implementation).apply(variables, x)[0]

    def run(implementation):
        of_inputs = jax.vmap(partial(outputs, implementation), (None, 0))
        return jax.vmap(of_inputs, (0, None))(variables, xs)

    assert_close(run("native"), run("fused"))


def test_no_members_and_no_rows(native):
    variables, *_ = drawn((None,) * 4)
    run = jax.vmap(stack("native").apply, (None, 0))
    for members, rows in ((0, B), (N, 0)):
        output, (h_n, _) = run(variables, jnp.ones((members, T, rows, I)))
        assert output.shape == (members, T, rows, D * H)
        assert h_n.shape == (members, L * D, rows, H)


def test_members_on_each_device(native):
    mesh = mesh_of_cpus()
    variables, xs, _, _ = drawn((0, 0, None, None))

    def run(implementation):
        return jax.vmap(stack(implementation).apply)

    of_device = jax.shard_map(
        run("native"), mesh=mesh, in_specs=Spec("rows"), out_specs=Spec("rows")
    )
    got = jax.jit(of_device)(variables, xs)
    assert_close(got, jax.jit(run("fused"))(variables, xs))


def counted(program, arguments):
    """Calls of loops, and XLA's loops and all-gathers, in what is compiled."""
    text = jax.jit(program).lower(*arguments).compile().as_text()
    names = ('custom_call_target="flax_lstm_', " while(", " all-gather(")
    return tuple(map(text.count, names))


@pytest.mark.parametrize("name", ["inputs", "states", "inputs_and_lengths"])
def test_members_with_the_same_weights_are_rows_of_one_call(name, native):
    axes = MAPPED[name]
    arguments = drawn(axes)
    assert counted(mapped("native", axes), arguments) == (L * D, 0, 0)
    assert counted(of_all("native", axes), arguments) == (2 * L * D, 0, 0)


def test_members_that_xla_spreads_over_devices_stand_side_by_side(native):
    """No loop can be called there, and no member's weights leave their device."""
    mesh = mesh_of_cpus()
    if mesh.size == 1:
        pytest.skip("needs 2 devices")
    axes = MAPPED["models"]
    variables, *others = drawn(axes)
    variables = jax.device_put(variables, NamedSharding(mesh, Spec("rows")))
    others = jax.device_put(others, NamedSharding(mesh, Spec()))
    arguments = (variables, *others)
    for program in (mapped, of_each, of_all):
        got, expected = (
            counted(program(way, axes), arguments) for way in ("native", "fused")
        )
        assert got == expected, program
    assert_close(
        jax.jit(of_all("native", axes))(*arguments),
        jax.jit(of_all("fused", axes))(*arguments),
    )


def test_members_on_an_explicit_mesh(native):
    devices = jax.devices("cpu")[:2]
    if len(devices) == 1:
        pytest.skip("needs 2 devices")
    mesh = jax.make_mesh((2,), ("members",), (AxisType.Explicit,), devices=devices)
    variables, xs, _, _ = drawn((0, 0, None, None))

    def run(implementation, *arguments):
        return jax.jit(jax.vmap(stack(implementation).apply))(*arguments)

    expected = run("fused", variables, xs)
    with jax.set_mesh(mesh):
        sharded = jax.device_put((variables, xs), NamedSharding(mesh, Spec("members")))
        got = run("native", *sharded)
    assert_close(jax.tree.map(np.asarray, got), jax.tree.map(np.asarray, expected))


def test_an_exported_ensemble_calls_no_loops(native):
    axes = MAPPED["models"]
    arguments = drawn(axes)
    program = jax.jit(mapped("native", axes))
    exported = jax.export.export(program, platforms=("cpu", "cuda"))(*arguments)
    assert "@flax_lstm_forward" not in exported.mlir_module()
    assert_close(exported.call(*arguments), program(*arguments))
