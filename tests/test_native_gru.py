"""The compiled loops of a GRU, which share all but a step with an LSTM's.

What they share is in test_native.py, and torch's results in test_torch_parity.py.
"""

import compiled_loops
import flax.errors
import flax.linen as nn
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
from jax.sharding import NamedSharding, PartitionSpec as Spec

from flax_lstm import (
    GRUClassifier,
    StackedGRU,
    _gru_layer,
    _native_primitives,
)
from flax_lstm._gru_cell import GRUCell
from flax_lstm._native_reference import LayerOptions

# Also where there is a GPU, which has no such loops.
pytestmark = pytest.mark.usefixtures("default_device_cpu")

CALL = "flax_gru_forward"
X = jax.random.normal(jax.random.key(1), (7, 5, 3))
DEFAULT = ("no_multiple", "shared_units", "large_weights_in_place")


def text_of(stack, *arguments):
    return jax.jit(stack.apply).lower(*arguments).as_text()


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("sizes", slow_but(SIZES, DEFAULT))
def test_results_and_gradients_of_any_size(sizes, threads, native, monkeypatch):
    monkeypatch.setattr(_native_primitives, "usable_cores", lambda: threads)
    loops, scan, arguments = setting(
        *sizes, kind=StackedGRU, lengths=sizes[1] > 1, bidirectional=True
    )
    got = value_and_gradients(loops)(*arguments)
    assert_close(got, value_and_gradients(scan)(*arguments))


@pytest.mark.parametrize(
    ("bias", "lengths"),
    [
        (False, True),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in ((True, True), (True, False), (False, False))
        ),
    ],
)
def test_every_kind_of_derivative_works(bias, lengths, native):
    options = {"kind": StackedGRU, "lengths": lengths, "bias": bias}
    options |= {"bidirectional": True}
    loops, scan, arguments = setting(3, 4, 2, 5, **options)
    got = jax.jit(lambda *a: derivatives(loops, *a))(*arguments)
    assert_close(got, jax.jit(lambda *a: derivatives(scan, *a))(*arguments))


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("lengths", [None, (7, 3, 0, 5, 1)])
def test_what_runs_in_the_loops_place_is_a_gru(reverse, lengths, native):
    """Forward, its tangents, and the transpose of those."""
    keys = iter(jax.random.split(jax.random.key(0), 32))
    cell = GRUCell(6)
    h_0 = jax.random.normal(next(keys), (5, 6))
    variables = cell.init(next(keys), h_0, X[0])
    valid = lengths and jnp.arange(7)[:, None] < jnp.array(lengths)

    def run_by(implementation):
        run = StackedGRU.implementations[implementation]

        def of(variables, x, h_0):
            bound = cell.bind(variables)
            return run(bound, h_0, x, valid=valid, reverse=reverse)

        return of

    arguments = variables, X, h_0
    results = jax.eval_shape(run_by("scan"), *arguments)
    tangents, cotangents = (
        jax.tree.map(lambda a: jax.random.normal(next(keys), (2, *a.shape)), given)
        for given in (arguments, results)
    )

    def all_of(run):
        def pullback(cotangent):
            return jax.vjp(run, *arguments)[1](cotangent)

        def pushforward(*tangents):
            return jax.jvp(run, arguments, tangents)[1]

        return jax.jit(
            lambda: (jax.vmap(pullback)(cotangents), jax.vmap(pushforward)(*tangents))
        )()

    assert_close(all_of(run_by("native")), all_of(run_by("scan")))


def test_blocks_that_are_zero_are_not_read(native):
    layer = jax.random.normal(jax.random.key(0), (5, 6))
    cell = GRUCell(6)
    variables = cell.init(jax.random.key(1), layer, X[0])
    weights = _gru_layer.weights_of(cell.bind(variables), X.shape[-1])
    options = LayerOptions("gru", reverse=False, on_gpu=False, precision=None)

    @jax.jit
    def value_and_gradient(x, weights):
        def of(x):
            arrays = jax.tree.leaves((x, weights, layer, layer))
            y, *_ = _native_primitives.forward_p.bind(*arrays, options=options)
            return jnp.sin(y).sum()

        return jax.value_and_grad(of)(x)

    expected = value_and_gradient(X, weights)
    nan = jax.tree.map(lambda block: block * jnp.nan, (weights.x[3], weights.h[2]))
    x, h = (*weights.x[:3], nan[0]), (*weights.h[:2], nan[1], weights.h[3])
    got = value_and_gradient(X, weights._replace(x=x, h=h))
    jax.tree.map(np.testing.assert_array_equal, got, expected)


@pytest.mark.parametrize("units", [17, 192])
def test_neither_threads_nor_other_rows_change_a_bit(units, native, monkeypatch):
    results = []
    for threads in (1, 2, 3):
        monkeypatch.setattr(_native_primitives, "usable_cores", lambda n=threads: n)
        loops, _, arguments = setting(3, 9, 28, units, kind=StackedGRU)
        results.append(value_and_gradients(loops)(*arguments))
    for other in results[1:]:
        jax.tree.map(np.testing.assert_array_equal, other, results[0])
    variables, x, hx = arguments
    (_, (whole, _, _)), _ = results[0]
    for rows in (1, 2, 5):
        _, (part, _, _) = jax.jit(loops)(variables, x[:, :rows], hx[:, :rows])
        np.testing.assert_array_equal(part, whole[:, :rows])


@pytest.mark.parametrize("bias", [True, False])
def test_shard_map_has_the_loops_on_every_device(bias, native):
    loops, _, (variables, x, hx) = setting(3, 8, 2, 5, kind=StackedGRU, bias=bias)
    by_rows = Spec(None, "rows")

    def shard(variables, x, hx):
        return jax.grad(lambda *a: loops(*a)[0])(variables, x, hx)

    spread = jax.jit(
        jax.shard_map(
            shard,
            mesh=mesh_of_cpus(),
            in_specs=(Spec(), by_rows, by_rows),
            out_specs=Spec(),
        )
    )
    assert CALL in spread.lower(variables, x, hx).as_text()
    expected = jax.jit(shard)(variables, x, hx)
    assert_close(spread(variables, x, hx), expected)


def test_an_empty_batch(native):
    loops, scan, arguments = setting(3, 0, 7, 5, kind=StackedGRU)
    got = value_and_gradients(loops)(*arguments)
    assert_close(got, value_and_gradients(scan)(*arguments))


def test_auto_takes_the_loops_where_they_are_compiled(native, monkeypatch):
    stack = StackedGRU(3, 6)
    variables = stack.init(jax.random.key(0), X)
    assert CALL not in text_of(stack, variables, X)
    monkeypatch.setenv("FLAX_LSTM_CACHE_DIR", compiled_loops.directory())
    jax.clear_caches()
    assert CALL in text_of(stack, variables, X)
    for x in (X[:1], X[:4, :1]):  # A single step, and few in all.
        assert CALL not in text_of(stack, variables, x)
    assert CALL not in text_of(stack.clone(dtype=jnp.bfloat16), variables, X)


def test_an_exported_program_runs_without_the_loops(native):
    stack = StackedGRU(3, 6, implementation="native")
    variables = stack.init(jax.random.key(0), X)
    run = jax.jit(lambda x: stack.apply(variables, x))
    (b,) = jax.export.symbolic_shape("b")
    for batch in (5, b):
        x = jax.ShapeDtypeStruct((7, batch, 3), jnp.float32)
        exported = jax.export.export(run)(x)
        assert CALL not in exported.mlir_module()
        assert_close(exported.call(X), run(X))


def test_a_program_that_xla_spreads_over_devices_has_none(native):
    loops, _, (variables, x, hx) = setting(3, 8, 2, 5, kind=StackedGRU)
    run = value_and_gradients(loops)
    expected = run(variables, x, hx)
    by_rows = NamedSharding(mesh_of_cpus(), Spec(None, "rows"))
    x, hx = jax.device_put((x, hx), by_rows)
    assert (CALL in run.lower(variables, x, hx).as_text()) == (by_rows.num_devices == 1)
    assert_close(run(variables, x, hx), expected)


def test_a_classifier_with_remat_has_the_loops_too(native):
    images = jnp.ones((3, 16, 2))
    model = GRUClassifier(4, 2, 5, batch_first=True, implementation="native")
    variables = model.init(jax.random.key(0), images)

    def gradient(model):
        def loss(variables):
            return (model.apply(variables, images) ** 2).sum()

        return jax.jit(jax.grad(loss)).lower(variables)

    with_remat = gradient(model.clone(remat=True))
    assert CALL in with_remat.as_text()
    expected = gradient(model.clone(implementation="scan")).compile()(variables)
    assert_close(with_remat.compile()(variables), expected)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, np.float64])
def test_other_dtypes_are_refused(dtype, native, x64):
    message = "^dtype: expected float32 with implementation='native'"
    with pytest.raises(ValueError, match=message):
        StackedGRU(3, 6, dtype=dtype, implementation="native")
    stack = StackedGRU(3, 6, implementation="native")
    variables = stack.init(jax.random.key(0), X.astype(jnp.float32))
    if dtype == np.float64:  # Half precision is promoted to the parameters' dtype.
        with pytest.raises(ValueError, match="expected float32"):
            stack.apply(variables, X.astype(dtype))


class OfReLU(StackedGRU):
    def make_cell(self, dtype, name):
        relu = nn.relu
        return GRUCell(self.hidden_size, activation_fn=relu, dtype=dtype, name=name)


class DoublingCell(GRUCell):
    @nn.nowrap
    def _from_hidden(self, gate):
        dense = super()._from_hidden(gate)
        return lambda h: 2 * dense(h)


class Doubling(StackedGRU):
    def make_cell(self, dtype, name):
        return DoublingCell(self.hidden_size, dtype=dtype, name=name)


@pytest.mark.parametrize("kind", [OfReLU, Doubling])
def test_a_step_that_the_loops_do_not_have(kind, native, monkeypatch):
    monkeypatch.setenv("FLAX_LSTM_CACHE_DIR", compiled_loops.directory())
    variables = StackedGRU(3, 6).init(jax.random.key(0), X)
    message = "^implementation: expected 'scan' or 'auto' .*, got 'native'"
    with pytest.raises(ValueError, match=message):
        kind(3, 6, implementation="native").apply(variables, X)
    expected, _ = kind(3, 6, implementation="scan").apply(variables, X)
    got, _ = kind(3, 6).apply(variables, X)
    np.testing.assert_array_equal(got, expected)


class OfNoDtype(StackedGRU):
    def make_cell(self, dtype, name):
        return GRUCell(self.hidden_size, name=name)


def test_a_cell_of_no_dtype_has_its_weights_cast(native):
    stack = OfNoDtype(3, 6, implementation="native")
    variables = StackedGRU(3, 6, param_dtype=jnp.bfloat16).init(jax.random.key(0), X)
    expected, _ = stack.clone(implementation="scan").apply(variables, X)
    np.testing.assert_allclose(stack.apply(variables, X)[0], expected, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda layer: layer.pop("hn"), "ParamNotFound"),
        (lambda layer: layer["hn"].update(bias=jnp.ones(())), "ParamShape"),
    ],
)
def test_parameters_that_do_not_fit_are_flaxs_own_errors(change, error, native):
    stack = StackedGRU(3, 6, implementation="native")
    variables = stack.init(jax.random.key(0), X)
    change(variables["params"]["layer_0"])
    with pytest.raises(getattr(flax.errors, f"Scope{error}Error"), match="hn"):
        stack.apply(variables, X)


def test_missing_parameters_are_made_where_they_may_be(native):
    stack = StackedGRU(3, 6, implementation="native")
    key = jax.random.key(0)
    _, made = stack.apply({}, X, mutable=["params"], rngs={"params": key})
    assert jax.tree.all(jax.tree.map(jnp.array_equal, made, stack.init(key, X)))
