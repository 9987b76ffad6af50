"""What stands around cuDNN's calls; with a stand-in for them where there is no GPU.

That outputs, states and gradients are torch's is shown where the others' are.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cudnn_stand_in import has_gpu, stand_in_for_cudnn
from jax import export
from jax.sharding import AxisType, PartitionSpec as Spec

from flax_lstm import LSTMClassifier, StackedLSTM, _cudnn_lstm

T, B, I, H = 5, 4, 3, 6  # noqa: E741

assert_same = partial(
    jax.tree.map, partial(np.testing.assert_allclose, rtol=0, atol=1e-5)
)


@pytest.fixture
def cudnn(monkeypatch):
    stand_in_for_cudnn(monkeypatch)


@pytest.fixture
def calls(cudnn, monkeypatch):
    """The sizes of every forward call."""
    seen = []
    forward = _cudnn_lstm._forward

    def counted(sizes, *arrays):
        seen.append(sizes)
        return forward(sizes, *arrays)

    monkeypatch.setattr(_cudnn_lstm, "_forward", counted)
    return seen


def setting(implementation="cudnn", **options):
    lstm = StackedLSTM(I, H, 3, implementation=implementation, **options)
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
    states = np.random.default_rng(1).standard_normal((2, 6, B, H)).astype(np.float32)
    hx = tuple(states if bidirectional else states[:, :3])

    def results(lstm):
        def loss(variables, x, hx):
            output, (h_n, c_n) = lstm.apply(variables, x, hx, seq_lengths=lengths)
            return (output**2).sum() + (h_n * c_n).sum(), (output, h_n, c_n)

        return jax.jit(jax.grad(loss, (0, 1, 2), has_aux=True))(variables, x, hx)

    assert_same(results(lstm), results(fused))


def test_dropouts_masks_are_the_other_implementations(cudnn):
    rngs = {"dropout": jax.random.key(1)}
    results = []
    for implementation in ("cudnn", "scan"):
        lstm, x, variables = setting(implementation, dropout=0.4)
        drop = partial(loss, lstm, deterministic=False, rngs=rngs)
        results.append(jax.value_and_grad(drop)(variables, x))
        assert drop(variables, x) != loss(lstm, variables, x)
    assert_same(*results)


def test_one_call_takes_all_layers_that_have_no_dropout_between_them(calls):
    lstm, x, variables = setting(dropout=0.4, bidirectional=True)
    lstm.apply(variables, x)
    assert [sizes.num_layers for sizes in calls] == [3]
    calls.clear()
    lstm.apply(variables, x, deterministic=False, rngs={"dropout": jax.random.key(0)})
    assert [sizes.num_layers for sizes in calls] == [1, 1, 1]
    assert [sizes.input_size for sizes in calls] == [I, 2 * H, 2 * H]


@pytest.mark.parametrize(
    ("chosen", "precision"),
    [
        (None, "HIGH"),
        ("tensorfloat32", "HIGH"),
        ("highest", "HIGHEST"),
        ("float32", "HIGHEST"),
    ],
)
def test_tf32_is_what_the_products_precision_says(calls, chosen, precision):
    lstm, x, variables = setting()
    with jax.default_matmul_precision(chosen):
        lstm.apply(variables, x)
    assert [sizes.precision for sizes in calls] == [jax.lax.Precision[precision]]


def test_bfloat16_products_are_refused(cudnn):
    lstm, x, variables = setting()
    message = "jax_default_matmul_precision: expected float32 or .* got 'bfloat16'"
    refused = pytest.raises(ValueError, match=message)
    with jax.default_matmul_precision("bfloat16"), refused:
        lstm.apply(variables, x)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float64])
def test_other_dtypes_are_refused(cudnn, x64, dtype):
    lstm, x, variables = setting(dtype=dtype)
    with pytest.raises(ValueError, match=r"dtype: expected float32 .* got"):
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


def test_vmap_is_refused(cudnn):
    lstm, x, variables = setting()
    with pytest.raises(NotImplementedError, match=r"'cudnn' can't run under jax\.vmap"):
        jax.vmap(lstm.apply, in_axes=(None, 0))(variables, x[None])


def test_forward_mode_is_refused(cudnn):
    lstm, x, variables = setting()
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(partial(lstm.apply, variables), (x,), (x,))


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
    assert_same(got, jax.grad(partial(loss, lstm), (0, 1))(variables, x))


def test_a_classifier_runs_by_it(cudnn):
    x = np.random.default_rng(0).random((B, T, I), np.float32)
    results = []
    for implementation in ("cudnn", "fused"):
        model = LSTMClassifier(10, I, H, 2, implementation=implementation)
        variables = model.init(jax.random.key(0), x)
        results.append(model.apply(variables, x))
    assert_same(*results)
