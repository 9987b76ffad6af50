"""The compiled loops: where they run, in which sizes, and what they refuse.

That they compute the same is shown where all implementations are tested too.
"""

import functools
import os
import pathlib
import re
import shutil
import subprocess

import compiled_loops
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from beside_fused import (
    SIZES,
    assert_close,
    derivatives,
    mesh_of_cpus,
    setting,
    slow_but,
    value_and_gradients,
)
from jax.sharding import AxisType, NamedSharding, PartitionSpec as Spec
from precision import assert_products_are_precise

from flax_lstm import LSTMClassifier, StackedLSTM, _native_primitives
from flax_lstm.native import cores, library

# Also where there is a GPU, which has no such loops.
pytestmark = pytest.mark.usefixtures("default_device_cpu")


DEFAULT = ("below_a_register", "no_multiple", "shared_units", "large_weights_in_place")


@pytest.mark.parametrize(
    "threads",
    [2, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 5))],
)
@pytest.mark.parametrize("sizes", slow_but(SIZES, DEFAULT))
def test_results_and_gradients_of_any_size(sizes, threads, native, monkeypatch):
    monkeypatch.setattr(_native_primitives, "usable_cores", lambda: threads)
    loops, fused, arguments = setting(*sizes, lengths=sizes[1] > 1, bidirectional=True)
    got = value_and_gradients(loops)(*arguments)
    assert_close(got, value_and_gradients(fused)(*arguments))


@pytest.mark.parametrize(
    "sizes",
    [
        SIZES["many_rows"],
        SIZES["shared_units"],
        SIZES["shared_units_of_fewer_rows"],
        SIZES["large_weights_in_place"],
        SIZES["weights_in_place"],
    ],
    ids=["rows_shared", "units_shared", "fewer_rows", "large_in_place", "in_place"],
)
def test_the_number_of_threads_changes_no_bit(sizes, native, monkeypatch):
    results = []
    for threads in (1, 2, 3):
        monkeypatch.setattr(_native_primitives, "usable_cores", lambda n=threads: n)
        loops, _, arguments = setting(*sizes, num_layers=2)
        results.append(value_and_gradients(loops)(*arguments))
    for other in results[1:]:
        jax.tree.map(np.testing.assert_array_equal, other, results[0])


@pytest.mark.parametrize("units", [17, 128])
def test_a_row_has_the_same_bits_in_a_batch_of_any_size(units, native):
    stack = StackedLSTM(28, units, implementation="native")
    x = jax.random.normal(jax.random.key(1), (7, 8, 28))
    variables = stack.init(jax.random.key(0), x)
    run = jax.jit(stack.apply)
    whole = run(variables, x)
    for rows in range(1, 8):
        part = run(variables, x[:, :rows])
        expected = jax.tree.map(lambda array, n=rows: array[:, :n], whole)
        jax.tree.map(np.testing.assert_array_equal, part, expected)


@pytest.mark.parametrize("units", [4, 192])
def test_an_empty_batch(units, native):
    loops, fused, arguments = setting(3, 0, 70, units)
    got = value_and_gradients(loops)(*arguments)
    assert_close(got, value_and_gradients(fused)(*arguments))


def test_gradients_of_many_rows_and_steps_keep_their_digits(native):
    """200,000 terms of one sign: as one float32 sum they were off by 2e-3."""
    steps, batch, units = 200, 1000, 4
    x = jnp.ones((steps, batch, 2))
    variables = StackedLSTM(2, units).init(jax.random.key(0), x)

    def gradient(dtype, implementation):
        stack = StackedLSTM(2, units, dtype=dtype, implementation=implementation)
        run = jax.jit(jax.grad(lambda variables: stack.apply(variables, x)[0].sum()))
        return jax.tree.map(np.asarray, run(variables))

    got = gradient("float32", "native")
    with jax.enable_x64(True):
        expected = gradient("float64", "scan")

    def check(got, expected):
        # Between that, and the 1e-5 of sums of sums.
        largest = np.abs(expected).max()
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-4 * largest)

    jax.tree.map(check, got, expected)


def test_tanh_is_nowhere_beyond_one(native):
    """It reaches 1 where its polynomials end, and stays there."""
    units = 512
    lstm = StackedLSTM(1, units, implementation="native")
    x = jnp.zeros((2, 3, 1))
    variables = jax.tree.map(jnp.zeros_like, lstm.init(jax.random.key(0), x))
    z = np.linspace(7, 12, units, dtype=np.float32)
    # c is tanh(z) of the last step.
    for gate, bias in (("i", 100.0), ("f", -100.0), ("g", z)):
        module = variables["params"]["layer_0"][f"h{gate}"]
        module["bias"] = jnp.broadcast_to(jnp.float32(bias), units)
    _, (_, c_n) = lstm.apply(variables, x)
    assert c_n.max() <= 1
    assert (c_n[..., z > 9.1] == 1).all()
    np.testing.assert_allclose(c_n[0, 0], np.tanh(z), rtol=7 * 2**-24)


def test_no_bias_has_no_gradient_of_one(native):
    loops, fused, arguments = setting(3, 4, 2, 5, bias=False)
    (_, gradients), (_, expected) = (
        value_and_gradients(loss)(*arguments) for loss in (loops, fused)
    )
    assert_close(gradients, expected)


@pytest.mark.parametrize("special", [np.nan, np.inf, -np.inf, 1e30])
def test_numbers_that_are_not_finite_or_huge_pass_as_in_xla(special, native):
    loops, fused, (variables, x, hx) = setting(4, 3, 2, 5)
    x = x.at[1, 0, 0].set(special)
    _, got = jax.jit(loops)(variables, x, hx)
    _, expected = jax.jit(fused)(variables, x, hx)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        got,
        expected,
    )
    if np.isnan(special):
        assert np.isnan(got[0][1:, 0]).all()
    assert np.isfinite(got[0][:, 1:]).all()


@pytest.mark.parametrize("name", ["value", "gradient"])
def test_an_open_gate_loses_nothing(name, native):
    """Saturated gates are exactly 0 and 1, or a thousand steps would add up."""
    steps, units = 1000, 3
    by_loops = StackedLSTM(1, units, implementation="native")
    x = jnp.zeros((steps, 1, 1))
    variables = jax.tree.map(jnp.zeros_like, by_loops.init(jax.random.key(0), x))
    for gate, bias in {"hi": -40.0, "hf": 40.0, "ho": 40.0}.items():
        variables["params"]["layer_0"][gate]["bias"] = jnp.full(units, bias)

    def kept(c_0):
        _, (_, c_n) = by_loops.apply(variables, x, (jnp.zeros_like(c_0), c_0))
        return c_n.sum()

    c_0 = jnp.ones((1, 1, units))
    got = kept(c_0) / units if name == "value" else jax.grad(kept)(c_0)
    np.testing.assert_array_equal(got, jnp.ones_like(got))


@pytest.mark.parametrize(
    "lengths", slow_but({"whole": False, "padded": True}, ("padded",))
)
def test_every_kind_of_derivative_works(lengths, native):
    loops, fused, arguments = setting(3, 4, 2, 5, lengths=lengths)
    got = jax.jit(lambda *a: derivatives(loops, *a))(*arguments)
    expected = jax.jit(lambda *a: derivatives(fused, *a))(*arguments)
    assert set(got) == set(expected)
    assert_close(got, expected)


def test_an_ensembles_gradient_is_that_of_the_fused_loops(native):
    """Not what JAX would make of a plain scan: as many loops and as many products."""

    def program(loss, arguments):
        variables, x, hx = arguments

        def of(variables):
            return jax.vmap(lambda v: loss(v, x, hx)[0])(variables).sum()

        members = jax.tree.map(lambda leaf: jnp.stack([leaf, -leaf]), variables)
        return jax.jit(jax.grad(of)).lower(members).as_text()

    loops, fused, arguments = setting(3, 4, 2, 5)
    got, expected = (program(loss, arguments) for loss in (loops, fused))
    for operation in ("stablehlo.while", "stablehlo.dot_general"):
        assert got.count(operation) == expected.count(operation) > 0, operation


CALLED = ("flax_lstm_forward_keeping", "flax_lstm_backward")


def lowered(loss, arguments, **options):
    gradient = jax.jit(jax.grad(lambda *a: loss(*a)[0], (0, 1, 2)), **options)
    return gradient.lower(*arguments).as_text()


def test_a_gradient_is_a_call_forward_and_one_backward_and_no_loop(native):
    loops, _, arguments = setting(3, 4, 2, 5)
    text = lowered(loops, arguments)
    assert all(text.count(f"@{name}(") == 1 for name in CALLED), text
    assert "while" not in text
    # Without a derivative nothing is kept.
    text = jax.jit(loops).lower(*arguments).as_text()
    assert "@flax_lstm_forward(" in text
    assert "keeping" not in text


def test_a_gradient_is_written_where_the_gates_were(native):
    steps, batch, units = 50, 16, 64
    loops, _, arguments = setting(steps, batch, 1, units)
    compiled = jax.jit(jax.grad(lambda *a: loops(*a)[0])).lower(*arguments).compile()
    a_number_a_unit = np.dtype(np.float32).itemsize * steps * batch * units
    # The gates and the cell state, y, its gradient, and h as a product reads it.
    held = compiled.memory_analysis().temp_size_in_bytes / a_number_a_unit
    assert 6 < held < 9.5
    assert " copy(" not in compiled.as_text()


@pytest.mark.parametrize("compiled", [False, True], ids=["by_itself", "in_a_program"])
def test_a_pullback_leaves_what_it_is_called_with_again(compiled, native):
    loops, fused, arguments = setting(3, 4, 2, 5, bidirectional=True)

    def gradients(loss, *arguments):
        value, pullback = jax.vjp(lambda *a: loss(*a)[0], *arguments)
        return [pullback(scale * jnp.ones_like(value)) for scale in (1.0, -2.0, 1.0)]

    run = jax.jit(gradients, static_argnums=0) if compiled else gradients
    first, other, again = run(loops, *arguments)
    jax.tree.map(np.testing.assert_array_equal, first, again)
    assert_close([first, other], run(fused, *arguments)[:2])


def test_an_inputs_gradient_that_nobody_asks_for_is_not_computed(native):
    loops, _, arguments = setting(3, 4, 2, 5)

    def needs_x(of):
        gradient = jax.grad(lambda *a: loops(*a)[0], of)
        jaxpr = str(jax.make_jaxpr(gradient)(*arguments))
        return "needs_x=True" in jaxpr

    assert not needs_x(0)
    assert needs_x((0, 1))


def test_a_program_that_xla_spreads_over_devices_has_the_fused_loops(native):
    loops, fused, (variables, x, hx) = setting(3, 8, 2, 5)
    mesh = mesh_of_cpus()
    x = jax.device_put(x, NamedSharding(mesh, Spec(None, "rows")))
    other = jax.device_put((variables, hx), NamedSharding(mesh, Spec()))
    arguments = (other[0], x, other[1])
    text = lowered(loops, arguments)
    assert mesh.size == 1 or not any(name in text for name in CALLED)
    got = value_and_gradients(loops)(*arguments)
    assert_close(got, value_and_gradients(fused)(*arguments))


def test_shard_map_has_the_loops_on_every_device(native):
    loops, _, (variables, x, hx) = setting(3, 8, 2, 5)
    mesh = mesh_of_cpus()
    by_rows = Spec(None, "rows")

    def shard(variables, x, hx):
        return jax.grad(lambda *a: loops(*a)[0])(variables, x, hx)

    spread = jax.jit(
        jax.shard_map(
            shard, mesh=mesh, in_specs=(Spec(), by_rows, by_rows), out_specs=Spec()
        )
    )
    text = spread.lower(variables, x, hx).as_text()
    assert all(f"@{name}(" in text for name in CALLED)
    expected = jax.jit(shard)(variables, x, hx)
    assert_close(spread(variables, x, hx), expected)


def text_of_spread(mesh, **options):
    """The program of a pass forward under shard_map, which has the batch in parts."""
    loops, _, arguments = setting(3, 8, 2, 5)
    # An abstract mesh leaves the devices to the arrays.
    arguments = jax.device_put(arguments, NamedSharding(mesh_of_cpus(), Spec()))
    by_rows = Spec(None, "rows")
    spread = jax.shard_map(
        lambda *a: loops(*a)[1][0],
        mesh=mesh,
        in_specs=(Spec(), by_rows, by_rows),
        out_specs=by_rows,
        **options,
    )
    return jax.jit(spread).lower(*arguments).as_text()


def test_shard_map_over_one_of_two_axes_has_the_fused_loops(native):
    """XLA itself spreads what lies along the other."""
    of_rows = mesh_of_cpus()
    mesh = jax.make_mesh(
        (of_rows.size, 1),
        ("rows", "others"),
        axis_types=(AxisType.Auto,) * 2,
        devices=[*of_rows.devices],
    )
    text = text_of_spread(mesh, axis_names={"rows"})
    assert not any(f"@{name}(" in text for name in ("flax_lstm_forward", *CALLED))


@pytest.mark.parametrize("abstract", [False, True])
def test_devices_share_the_cores(abstract, native, monkeypatch):
    monkeypatch.setattr(_native_primitives, "usable_cores", lambda: 8)
    mesh = mesh_of_cpus()
    text = text_of_spread(mesh.abstract_mesh if abstract else mesh)
    assert re.findall(r"threads = (\d+)", text) == [str(8 // mesh.size)]


def test_an_exported_program_runs_without_the_loops(native):
    loops, fused, arguments = setting(3, 4, 2, 5)
    exported = jax.export.export(jax.jit(loops), platforms=("cpu", "cuda"))(*arguments)
    assert "@flax_lstm_forward" not in exported.mlir_module()
    assert_close(exported.call(*arguments), jax.jit(fused)(*arguments))


def classifier(**options):
    model = LSTMClassifier(3, 2, 5, 1, **options)
    x = jnp.ones((2, 4, 2))
    return model, model.clone(implementation="fused").init(jax.random.key(0), x), x


def text_of(model, variables, x):
    return jax.jit(model.apply).lower(variables, x).as_text()


def test_auto_takes_the_loops_where_they_are_compiled(native, monkeypatch):
    model, variables, x = classifier()
    assert model.implementation == "auto"
    assert "flax_lstm_forward" not in text_of(model, variables, x)
    monkeypatch.setenv("FLAX_LSTM_CACHE_DIR", compiled_loops.directory())
    jax.clear_caches()
    assert "flax_lstm_forward" in text_of(model, variables, x)


@pytest.mark.parametrize(
    "options", [{"proj_size": 2}, {"dtype": jnp.bfloat16}], ids=["projection", "dtype"]
)
def test_auto_is_fused_where_the_loops_cannot_serve(options, native, monkeypatch):
    monkeypatch.setenv("FLAX_LSTM_CACHE_DIR", compiled_loops.directory())
    model, variables, x = classifier(**options)
    assert "flax_lstm_forward" not in text_of(model, variables, x)


def test_auto_is_fused_for_a_single_step_and_for_few_in_all(native, monkeypatch):
    """As a decoder's are: the loops pack the weights for every call."""
    monkeypatch.setenv("FLAX_LSTM_CACHE_DIR", compiled_loops.directory())
    model, variables, _ = classifier()
    for batch, steps, takes in [(64, 1, False), (1, 4, False), (64, 2, True)]:
        text = text_of(model, variables, jnp.ones((batch, steps, 2)))
        assert ("flax_lstm_forward" in text) is takes


def test_auto_is_fused_for_symbolic_sizes(native, monkeypatch):
    monkeypatch.setenv("FLAX_LSTM_CACHE_DIR", compiled_loops.directory())
    model, variables, _ = classifier()
    (b,) = jax.export.symbolic_shape("b")
    x = jax.ShapeDtypeStruct((b, 4, 2), jnp.float32)
    exported = jax.export.export(jax.jit(lambda x: model.apply(variables, x)))(x)
    assert exported.call(jnp.ones((7, 4, 2))).shape == (7, 3)


def test_other_dtypes_are_refused(native):
    message = r"dtype: expected float32 .*got bfloat16"
    with pytest.raises(ValueError, match=message):
        classifier(implementation="native", dtype=jnp.bfloat16)
    model, variables, x = classifier(implementation="native")
    x, variables = jax.tree.map(lambda a: a.astype(jnp.bfloat16), (x, variables))
    with pytest.raises(ValueError, match=message):
        model.apply(variables, x)


def test_a_projection_is_refused():
    with pytest.raises(ValueError, match=r"proj_size: expected 0 .*'native'.*got 2"):
        StackedLSTM(3, 4, proj_size=2, implementation="native")


def test_symbolic_sizes_are_those_of_an_exported_function(native):
    model, variables, _ = classifier(implementation="native")
    (b,) = jax.export.symbolic_shape("b")
    x = jax.ShapeDtypeStruct((b, 4, 2), jnp.float32)
    exported = jax.export.export(jax.jit(model.apply))(variables, x)
    x = jax.random.normal(jax.random.key(0), (3, 4, 2))
    assert_close(exported.call(variables, x), model.apply(variables, x))


def test_initialising_needs_no_loops(tmp_path, monkeypatch):
    monkeypatch.setenv("FLAX_LSTM_CACHE_DIR", str(tmp_path))
    model, expected, x = classifier(implementation="native")
    got = model.init(jax.random.key(0), x)
    jax.tree.map(np.testing.assert_array_equal, got, expected)


@pytest.mark.parametrize(
    ("cpu_max", "expected"),
    [
        ("100000 100000", 1),
        ("50000 100000", 1),
        ("150000 100000", 2),
        ("900000 100000", 8),
        ("max 100000", 8),
        (None, 8),
    ],
)
def test_a_containers_share_of_the_cores_limits_them(
    cpu_max, expected, tmp_path, monkeypatch
):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(8), raising=False)
    file = tmp_path / "cpu.max"
    if cpu_max:
        file.write_text(f"{cpu_max}\n")
    monkeypatch.setattr(cores, "_CPU_MAX", file)
    assert cores.usable_cores() == expected


def command_for(source, program, *options):
    """That compiles one of the programs beside this file."""
    compiler, *given = library.CPU.compiler.command_line()
    if not shutil.which(compiler):
        pytest.skip(f"the loops' source needs a C++ compiler, {compiler}")
    include = pathlib.Path(library.__file__).parent
    source = pathlib.Path(__file__).parent / "native" / source
    options = ["-std=c++20", "-O1", "-g", "-pthread", *options]
    return [compiler, *given, *options, "-I", include, source, "-o", program]


def test_a_thread_that_waits_and_is_held_up_holds_up_no_other(tmp_path):
    program = tmp_path / "held_up"
    subprocess.run(command_for("held_up.cc", program), check=True)
    # Milliseconds, or for ever.
    subprocess.run([program], check=True, timeout=60)


def test_no_thread_reads_what_another_still_writes(tmp_path):
    """A thread sanitizer watches phases of up to seven items and four threads."""
    program = tmp_path / "phases"
    command = command_for("phases.cc", program, "-fsanitize=thread")
    compiler = command[0]
    empty = tmp_path / "empty.cc"
    empty.write_text("int main() {}")
    build = functools.partial(subprocess.run, capture_output=True, check=False)
    if build(command_for(empty, program, "-fsanitize=thread")).returncode or (
        build([program]).returncode
    ):
        pytest.skip(f"{compiler} has no thread sanitizer that runs here")
    subprocess.run(command, check=True)
    done = subprocess.run([program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "WARNING" not in done.stderr


def test_a_reference_traced_later_is_as_precise_as_its_layer(native):
    """On devices that XLA spreads a program over: there the reference is compiled."""
    mesh = mesh_of_cpus()
    if mesh.size == 1:
        pytest.skip("needs 2 devices")
    loops, _, (variables, x, hx) = setting(3, 4, 2, 5)
    x = jax.device_put(x, NamedSharding(mesh, Spec(None, "rows")))
    variables, hx = jax.device_put((variables, hx), NamedSharding(mesh, Spec()))
    assert_products_are_precise(
        lambda variables, x: loops(variables, x, hx)[0], variables, x
    )
