"""What stands around cuDNN's calls; with a stand-in for them where there is no GPU.

That outputs, states and gradients are torch's is shown where the others' are.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cudnn_stand_in import has_gpu, stand_in_for_cudnn
from flax import nnx
from jax import export
from jax.sharding import AxisType, NamedSharding, PartitionSpec as Spec
from precision import assert_products_are_precise

from flax_lstm import LSTMClassifier, StackedLSTM, _cudnn_lstm, _cudnn_primitives
from flax_lstm._compiled_once import is_cacheable
from flax_lstm._cudnn_weights import CudnnOptions, join, split
from flax_lstm._lstm_weights import Weights

T, B, I, H = 5, 4, 3, 6  # noqa: E741

assert_same = partial(
    jax.tree.map, partial(np.testing.assert_allclose, rtol=0, atol=1e-5)
)


@pytest.fixture
def cudnn(monkeypatch):
    stand_in_for_cudnn(monkeypatch)


@pytest.fixture
def calls(cudnn, monkeypatch):
    """The options of every layer or layers that are run at once."""
    seen = []
    primitive = _cudnn_lstm.forward_p

    class Counted:
        @staticmethod
        def bind(*arrays, options):
            seen.append(options)
            return primitive.bind(*arrays, options=options)

    monkeypatch.setattr(_cudnn_lstm, "forward_p", Counted)
    return seen


def setting(implementation="cudnn", layers=2, **options):
    """Of two layers by default: the first reads the input, the other the one below."""
    lstm = StackedLSTM(I, H, layers, implementation=implementation, **options)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((T, B, I)).astype(np.float32)
    return lstm, x, lstm.init(jax.random.key(0), x)


def loss(lstm, variables, x, **options):
    output, (h_n, c_n) = lstm.apply(variables, x, **options)
    return (output**2).sum() + (h_n * c_n).sum()


@pytest.mark.parametrize(
    "bidirectional", [pytest.param(False, marks=pytest.mark.slow), True]
)
def test_empty_rows_beside_others(cudnn, bidirectional):
    lengths = np.array([0, 3, T, 0])
    fused, x, variables = setting("fused", bidirectional=bidirectional)
    x[:, 0] = np.nan
    lstm, _, _ = setting(bidirectional=bidirectional)
    states = np.random.default_rng(1).standard_normal((2, 4, B, H)).astype(np.float32)
    hx = tuple(states if bidirectional else states[:, :2])

    def results(lstm):
        def loss(variables, x, hx):
            output, (h_n, c_n) = lstm.apply(variables, x, hx, seq_lengths=lengths)
            return (output**2).sum() + (h_n * c_n).sum(), (output, h_n, c_n)

        return jax.jit(jax.grad(loss, (0, 1, 2), has_aux=True))(variables, x, hx)

    assert_same(results(lstm), results(fused))


def test_no_rows_at_all(cudnn):
    lstm, x, variables = setting(bidirectional=True)
    gradient = jax.value_and_grad(partial(loss, lstm), (0, 1))
    value, (of_variables, of_x) = gradient(variables, x[:, :0])
    assert value == 0
    assert of_x.shape == (T, 0, I)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(of_variables))


def test_dropouts_masks_are_the_other_implementations(cudnn):
    rngs = {"dropout": jax.random.key(1)}
    results = []
    for implementation in ("cudnn", "scan"):
        lstm, x, variables = setting(implementation, dropout=0.4)
        drop = partial(loss, lstm, deterministic=False, rngs=rngs)
        results.append(jax.jit(jax.value_and_grad(drop))(variables, x))
        assert results[-1][0] != jax.jit(partial(loss, lstm))(variables, x)
    assert_same(*results)


def test_one_call_takes_all_layers_that_have_no_dropout_between_them(calls):
    lstm, x, variables = setting(layers=3, dropout=0.4, bidirectional=True)
    lstm.apply(variables, x)
    assert [options.num_layers for options in calls] == [3]
    calls.clear()
    lstm.apply(variables, x, deterministic=False, rngs={"dropout": jax.random.key(0)})
    assert [options.num_layers for options in calls] == [1, 1, 1]
    assert [options.input_size for options in calls] == [I, 2 * H, 2 * H]


@pytest.mark.parametrize(
    ("chosen", "precision"),
    [
        (None, "HIGH"),
        ("default", "HIGH"),
        ("high", "HIGH"),
        ("tensorfloat32", "HIGH"),
        ("highest", "HIGHEST"),
        ("float32", "HIGHEST"),
        ("F32_F32_F32", "HIGHEST"),
    ],
)
def test_tf32_is_what_the_products_precision_says(calls, chosen, precision):
    lstm, x, variables = setting()
    with jax.default_matmul_precision(chosen):
        lstm.apply(variables, x)
    assert [options.precision for options in calls] == [jax.lax.Precision[precision]]


def test_tf32_has_a_name_as_an_algorithm_too():
    """By which products on a CPU, as in the tests above, are none of JAX's."""
    with jax.default_matmul_precision("TF32_TF32_F32"):
        assert _cudnn_lstm._precision() == jax.lax.Precision.HIGH


def test_bfloat16_products_are_refused(cudnn):
    lstm, x, variables = setting()
    message = "jax_default_matmul_precision: expected float32 or .* got 'bfloat16'"
    refused = pytest.raises(ValueError, match=message)
    with jax.default_matmul_precision("bfloat16"), refused:
        lstm.apply(variables, x)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float64])
def test_other_dtypes_are_refused(cudnn, x64, dtype):
    message = rf"dtype: expected float32 .* got {jnp.dtype(dtype)}"
    with pytest.raises(ValueError, match=message):
        setting(dtype=dtype)
    lstm, x, variables = setting()
    x, variables = jax.tree.map(partial(jnp.asarray, dtype=dtype), (x, variables))
    with pytest.raises(ValueError, match=message):
        lstm.apply(variables, x)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"proj_size": 2}, "proj_size: expected 0 with implementation='cudnn'"),
        ({"remat": True}, "remat: expected False with implementation='cudnn'"),
    ],
)
def test_options_that_cudnn_has_not_are_refused(option, message):
    with pytest.raises(ValueError, match=message):
        StackedLSTM(I, H, implementation="cudnn", **option)


def squares_of_gradients(loss, *arguments):
    gradients = jax.grad(loss, (0, 1))(*arguments)
    return sum((leaf**2).sum() for leaf in jax.tree.leaves(gradients))


def along(loss, *arguments):
    _, tangent = jax.jvp(loss, arguments, jax.tree.map(lambda a: 0.5 * a, arguments))
    return tangent


def transposed_pullback(loss, *arguments):
    value, pullback = jax.vjp(loss, *arguments)
    return jax.linear_transpose(pullback, value)(arguments)


DERIVATIVES = {
    "forward": lambda f, *a: along(f, *a),
    "linearized": lambda f, *a: jax.linearize(f, *a)[1](*a),
    "reverse_of_reverse": lambda f, *a: jax.grad(partial(squares_of_gradients, f))(*a),
    "forward_of_reverse": lambda f, *a: along(jax.grad(f, (0, 1)), *a),
    "reverse_of_forward": lambda f, *a: jax.grad(partial(along, f), (0, 1))(*a),
    "transposed_pullback": transposed_pullback,
    "reverse_of_a_checkpoint": lambda f, *a: jax.grad(jax.checkpoint(f), (0, 1))(*a),
}
COMPILE_LONG = ("reverse_of_reverse", "reverse_of_forward")


# Some take half a minute to compile; their rules are the native loops', too, which
# test_native.py has in the default run.
@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(k, marks=pytest.mark.slow if k in COMPILE_LONG else ())
        for k in DERIVATIVES
    ],
)
def test_derivatives_of_every_kind(cudnn, kind):
    states = np.random.default_rng(1).standard_normal((2, 4, B, H)).astype(np.float32)
    options = {"hx": tuple(states), "seq_lengths": np.array([0, 3, T, 1])}
    results = []
    for implementation in ("cudnn", "fused"):
        lstm, x, variables = setting(implementation, bidirectional=True)
        run = partial(DERIVATIVES[kind], partial(loss, lstm, **options))
        results.append(jax.jit(run)(variables, x))
    # Of numbers up to some tens, sums of hundreds of products.
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4), *results)


def test_vmap_over_an_ensemble_and_its_gradients(cudnn):
    results = []
    for implementation in ("cudnn", "fused"):
        lstm, x, _ = setting(implementation, bidirectional=True)
        variables = jax.vmap(lstm.init, (0, None))(
            jax.random.split(jax.random.key(0)), x
        )
        of_one = jax.value_and_grad(partial(loss, lstm), (0, 1))
        results.append(jax.jit(jax.vmap(of_one, (0, None)))(variables, x))
    assert_same(*results)


@pytest.fixture
def lowered_calls(cudnn, monkeypatch):
    """Direction and input shape of cuDNN's calls, as they are lowered."""
    library, seen = _cudnn_primitives.rnn, []

    class Watched:
        @staticmethod
        def lstm_fwd(x, *arrays, **sizes):
            seen.append(("forward", x.shape))
            return library.lstm_fwd(x, *arrays, **sizes)

        @staticmethod
        def lstm_bwd(*arguments):
            seen.append(("backward", arguments[-2][0].shape))
            return library.lstm_bwd(*arguments)

    monkeypatch.setattr(_cudnn_primitives, "rnn", Watched)
    return seen


def test_inference_is_one_call(lowered_calls):
    lstm, x, variables = setting(bidirectional=True)
    jax.jit(lstm.apply).lower(variables, x)
    assert lowered_calls == [("forward", (B, T, I))]


@pytest.mark.skipif(jax.device_count() < 2, reason="needs two devices")
def test_what_xla_divides_among_devices_calls_nothing(lowered_calls):
    mesh = jax.make_mesh((2,), ("rows",), (AxisType.Auto,), devices=jax.devices()[:2])
    lstm, x, variables = setting()
    x = jax.device_put(x, NamedSharding(mesh, Spec(None, "rows")))
    jax.jit(lstm.apply).lower(variables, x)
    assert lowered_calls == []


def test_what_is_exported_calls_nothing(lowered_calls):
    lstm, x, variables = setting()
    export.export(jax.jit(lstm.apply))(variables, x)
    assert lowered_calls == []


def test_reverse_mode_is_a_call_forward_and_one_backward(lowered_calls):
    lstm, x, variables = setting(bidirectional=True)
    jax.jit(jax.grad(partial(loss, lstm))).lower(variables, x)
    # Once to ask what cuDNN keeps.
    names = ("forward", "forward", "backward")
    assert lowered_calls == [(name, (B, T, I)) for name in names]


@pytest.mark.parametrize("compiled", [False, True], ids=["by_itself", "in_a_program"])
def test_a_pullback_can_be_called_again(cudnn, compiled):
    """cuDNN writes to what it keeps for the call backward (on a GPU)."""

    def gradients(lstm, variables, x):
        value, pullback = jax.vjp(partial(loss, lstm), variables, x)
        return [pullback(scale * jnp.ones_like(value)) for scale in (1.0, -2.0, 1.0)]

    lstm, x, variables = setting()
    run = jax.jit(gradients, static_argnums=0) if compiled else gradients
    first, other, again = run(lstm, variables, x)
    jax.tree.map(np.testing.assert_array_equal, first, again)
    fused, _, _ = setting("fused")
    assert_same([first, other], run(fused, variables, x)[:2])


def test_the_calls_are_told_how_arrays_lie(cudnn):
    """XLA, which is not told by JAX, gave a transposed input as it lay."""
    told = {"forward": 5 + 3, "forward_keeping": 5 + 3, "backward": 6 + 3 + 4}
    options = CudnnOptions(I, H, 2, 0.0, False, jax.lax.Precision.HIGHEST)
    vector = jax.ShapeDtypeStruct((4 * H * (I + H + 2) + 4 * H * (2 * H + 2),), "f4")
    x, y = (jax.ShapeDtypeStruct((B, T, size), "f4") for size in (I, H))
    state = jax.ShapeDtypeStruct((2, B, H), "f4")
    arguments = (x, state, state, vector, jax.ShapeDtypeStruct((B,), "i4"))
    size = _cudnn_primitives._kept_size(arguments, options)
    kept = jax.ShapeDtypeStruct((size,), "f4")
    calls = {
        "forward": (arguments, {}),
        "forward_keeping": (arguments, {"kept_size": kept.size}),
        "backward": ((*arguments, y, kept, y, state, state), {}),
    }
    for name, (operands, others) in calls.items():
        call = getattr(_cudnn_primitives, f"_call_{name}")
        run = partial(call, options=options, **others)
        text = str(jax.make_jaxpr(run)(*operands))
        assert text.count("layout_constraint") == told[name], text


def test_weights_as_one_vector_and_back():
    keys = iter(jax.random.split(jax.random.key(0), 6 * 12))
    options = CudnnOptions(I, H, 3, 0.0, True, jax.lax.Precision.HIGHEST)
    cells = [
        Weights(
            x=tuple(jax.random.normal(next(keys), (wide, H)) for _ in range(4)),
            h=tuple(jax.random.normal(next(keys), (H, H)) for _ in range(4)),
            b=tuple(jax.random.normal(next(keys), (H,)) for _ in range(4)),
            projection=None,
        )
        for wide in (I, I, 2 * H, 2 * H, 2 * H, 2 * H)
    ]
    again = split(join(cells), options)
    jax.tree.map(np.testing.assert_array_equal, again, cells)


def one_layer():
    """Options and arguments of a call for one layer."""
    options = CudnnOptions(I, H, 1, 0.0, False, jax.lax.Precision.HIGHEST)
    state = jnp.ones((1, B, H))
    weights = jnp.ones(4 * H * (I + H + 2))
    return options, (jnp.ones((B, T, I)), state, state, weights, jnp.full(B, T))


def test_the_reference_keeps_nothing_that_cudnn_could_take_for_its_own():
    options, arguments = one_layer()
    *results, kept = _cudnn_primitives.forward_keeping(
        *arguments, options=options, kept_size=7
    )
    assert kept.shape == (7,)
    assert jnp.isnan(kept).all()
    assert_same(tuple(results), _cudnn_primitives.forward(*arguments, options=options))


def test_symbolic_sizes_are_refused(cudnn):
    lstm, _, variables = setting()
    shape = export.symbolic_shape(f"{T}, batch, {I}")
    with pytest.raises(ValueError, match="input: expected known sizes"):
        export.export(jax.jit(partial(lstm.apply, variables)))(
            jax.ShapeDtypeStruct(shape, np.float32)
        )


@pytest.mark.skipif(has_gpu(), reason="an NVIDIA GPU is here")
def test_without_a_gpu_the_error_says_so():
    lstm, x, variables = setting()
    message = "'cudnn', which needs an NVIDIA GPU; JAX has cpu"
    with pytest.raises(ValueError, match=message):
        lstm.apply(variables, x)


def test_gradients_under_shard_map_are_the_whole_batchs(cudnn):
    devices = jax.devices()
    mesh = jax.make_mesh(
        (min(2, len(devices)),),
        ("rows",),
        axis_types=(AxisType.Auto,),
        devices=devices[:2],
    )
    lstm, x, variables = setting()

    @partial(
        jax.shard_map,
        mesh=mesh,
        in_specs=(Spec(), Spec(None, "rows")),
        out_specs=Spec(),
    )
    def total(variables, x):
        return jax.lax.psum(loss(lstm, variables, x), "rows")

    got = jax.jit(jax.grad(total, (0, 1)))(variables, x)
    assert_same(got, jax.jit(jax.grad(partial(loss, lstm), (0, 1)))(variables, x))


def test_of_a_meshs_devices_each_keeps_its_own():
    """Else JAX might take one's for all of them, from one shard_map to the next."""
    mesh = jax.make_mesh((1,), ("rows",), axis_types=(AxisType.Auto,))
    options, arguments = one_layer()

    def varying_axes(*arguments):
        *_, kept = _cudnn_primitives.forward_keeping(
            *arguments, options=options, kept_size=7
        )
        seen.append(jax.typeof(kept).manual_axis_type.varying)

    seen = []
    run = jax.shard_map(
        varying_axes, mesh=mesh, in_specs=Spec("rows"), out_specs=Spec()
    )
    jax.eval_shape(run, *arguments)
    assert seen == [{"rows"}]


def test_a_classifier_runs_by_it(cudnn):
    x = np.random.default_rng(0).random((B, T, I), np.float32)
    results = []
    for implementation in ("cudnn", "fused"):
        model = LSTMClassifier(10, I, H, 2, implementation=implementation)
        variables = model.init(jax.random.key(0), x)
        results.append(model.apply(variables, x))
    assert_same(*results)


def test_a_mesh_with_explicit_sharding_equals_one_device(cudnn):
    lstm, x, variables = setting(bidirectional=True)
    gradient = jax.jit(jax.value_and_grad(partial(loss, lstm)))
    expected = gradient(variables, x)
    mesh = jax.make_mesh((min(2, jax.device_count()),), ("data",), (AxisType.Explicit,))
    with jax.set_mesh(mesh):
        by_rows, everywhere = (
            NamedSharding(mesh, spec) for spec in (Spec(None, "data"), Spec())
        )
        got = gradient(
            jax.device_put(variables, everywhere), jax.device_put(x, by_rows)
        )
    # Sums of some hundred squares.
    jax.tree.map(
        partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-4),
        jax.tree.map(np.asarray, got),
        expected,
    )


def test_nnx_bridge_gives_the_linen_output(cudnn):
    lstm, x, _ = setting(bidirectional=True)
    model = nnx.bridge.ToNNX(lstm, rngs=nnx.Rngs(0))
    nnx.bridge.lazy_init(model, x)
    params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    assert_same(model(x), lstm.apply({"params": params}, x))


def test_under_vmap_the_reference_is_as_precise_as_its_layer(cudnn):
    lstm, x, variables = setting()

    def mapped(variables, x):
        return jax.vmap(partial(loss, lstm), in_axes=(None, 0))(variables, x[None])[0]

    assert_products_are_precise(mapped, variables, x)


def test_elsewhere_the_reference_is_as_precise_as_its_layer(
    cudnn, default_device_cpu, monkeypatch
):
    """It is compiled in place of cuDNN's calls, for a CPU here."""
    monkeypatch.setattr(_cudnn_lstm, "forward_p", _cudnn_primitives.forward_p)
    lstm, x, variables = setting()
    assert_products_are_precise(partial(loss, lstm), variables, x)


def test_under_vmap_a_layer_in_tf32_stays_in_tf32(cudnn):
    lstm, x, variables = setting()
    mapped = jax.vmap(partial(loss, lstm), in_axes=(None, 0))
    with jax.default_matmul_precision("tensorfloat32"):
        traced = jax.jit(mapped).trace(variables, x[None])
    text = traced.lower().as_text()
    products = [line for line in text.splitlines() if "dot_general" in line]
    assert products
    assert all("[HIGH, HIGH]" in line for line in products), products


def test_outside_of_jit_what_was_traced_is_kept():
    assert is_cacheable(_cudnn_lstm.run_layers_by_cudnn)
