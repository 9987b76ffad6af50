"""JAX's and Flax's transformations, and dropout."""

import warnings
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec as Spec
from jax.test_util import check_grads
from jaxprs import equations
from kinds import KINDS, packed

from flax_lstm import LSTMClassifier, RNNClassifier, StackedGRU, StackedLSTM

T, B, I, H = 4, 4, 3, 4  # noqa: E741
KEY = jax.random.key(0)

# Other orders of the same float32 sums, of values of order 1 to 10.
TOLERANCE = 1e-5
assert_same = partial(
    jax.tree.map, partial(np.testing.assert_allclose, rtol=0, atol=TOLERANCE)
)


def draw(stack, dtype=np.float32):
    """Input, state and variables of a stack, of standard normal numbers."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((T, B, stack.input_size)).astype(dtype)
    rows = stack.num_layers * (2 if stack.bidirectional else 1)
    states = tuple(
        rng.standard_normal((rows, B, size)).astype(dtype) for size in stack.state_sizes
    )
    shapes = jax.eval_shape(stack.init, KEY, x)
    return (
        x,
        packed(states),
        jax.tree.map(lambda s: rng.standard_normal(s.shape).astype(dtype), shapes),
    )


def test_jit_equals_eager(variant):
    stack = variant.build(I, H, 2)
    x, hx, variables = draw(stack)
    assert_same(jax.jit(stack.apply)(variables, x, hx), stack.apply(variables, x, hx))


def test_first_and_second_gradients_are_those_of_finite_differences(x64, variant):
    stack = variant.build(I, 3, **variant.projection(2), param_dtype="float64")
    rng = np.random.default_rng(0)
    x = rng.standard_normal((3, 2, I))
    hx = packed([rng.standard_normal((1, 2, size)) for size in stack.state_sizes])
    variables = stack.init(KEY, x)
    run = jax.jit(partial(stack.apply, seq_lengths=np.array([3, 1])))
    # Central differences with a step of 1e-6 or so, in float64: 1e-4 is JAX's
    # choice for them, the differences of second order are of differences.
    check_grads(
        run, (variables, x, hx), order=2, modes=("fwd", "rev"), atol=1e-4, rtol=1e-4
    )


def test_jvp_is_the_gradient_along_the_tangent(variant):
    stack = variant.build(I, H)
    x, _, variables = draw(stack)
    tangent = np.random.default_rng(1).standard_normal(x.shape).astype(np.float32)

    def loss(x):
        return stack.apply(variables, x)[0].sum()

    value, along = jax.jvp(loss, (x,), (tangent,))
    np.testing.assert_allclose(value, loss(x), rtol=0, atol=TOLERANCE)
    expected = (jax.grad(loss)(x) * tangent).sum()
    np.testing.assert_allclose(along, expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("of_input", [True, False], ids=["input", "weights"])
def test_a_pullback_transposed_gives_the_tangents(of_input, variant):
    """As where `jax.lax.custom_linear_solve` has one in its operator."""
    stack = variant.build(I, H, 2, bidirectional=True)
    x, hx, variables = draw(stack)
    run = partial(stack.apply, hx=hx, seq_lengths=np.array([1, 4, 0, 3]))
    primals = (variables, x)
    if not of_input:
        run, primals = partial(run, input=x), (variables,)
    tangents = jax.tree.map(np.cos, primals)

    @jax.jit
    def transposed(primals, tangents):
        results, pullback = jax.vjp(run, *primals)
        (of_results,) = jax.linear_transpose(pullback, results)(tangents)
        return of_results

    _, expected = jax.jvp(run, primals, tangents)
    assert_same(transposed(primals, tangents), expected)


def test_vmap_over_an_ensemble_equals_a_loop(variant):
    stack = variant.build(I, H)
    x, _, _ = draw(stack)
    keys = jax.random.split(KEY, 3)
    ensemble = jax.vmap(lambda key: stack.init(key, x))(keys)
    outputs = jax.vmap(lambda variables: stack.apply(variables, x))(ensemble)
    for k, key in enumerate(keys):
        variables = stack.init(key, x)
        assert_same(jax.tree.map(lambda leaf, k=k: leaf[k], ensemble), variables)
        member = jax.tree.map(lambda leaf, k=k: leaf[k], outputs)
        assert_same(member, stack.apply(variables, x))


def test_vmap_over_inputs_with_lengths_equals_a_loop(variant):
    stack = variant.build(I, H)
    x, _, variables = draw(stack)
    xs, lengths = np.stack([x, -x]), np.array([[1, 2, 3, 4], [0, 4, 2, 1]])

    def run(x, lengths):
        return stack.apply(variables, x, seq_lengths=lengths)

    outputs = jax.vmap(run)(xs, lengths)
    for k in range(2):
        assert_same(
            jax.tree.map(lambda leaf, k=k: leaf[k], outputs), run(xs[k], lengths[k])
        )


def test_checkpoint_gives_the_same_gradients(variant):
    stack = variant.build(I, H)
    x, _, variables = draw(stack)

    def loss(variables, x):
        return (stack.apply(variables, x)[0] ** 2).sum()

    plain = jax.jit(jax.grad(loss, (0, 1)))(variables, x)
    assert_same(jax.jit(jax.grad(jax.checkpoint(loss), (0, 1)))(variables, x), plain)


def devices_for(batch):
    """Four devices on CPU, elsewhere as many as there are and divide `batch`."""
    return max(n for n in (1, 2, 4) if n <= jax.device_count() and batch % n == 0)


SHARDED = {
    # options, hx's spec (None: no state given), whether lengths are given
    "zero_state": ({}, None, False),
    "replicated_state": ({}, Spec(), False),
    "sharded_state": ({}, Spec(None, "data"), False),
    "lengths": ({}, None, True),
    "bidirectional": ({"bidirectional": True}, None, False),
    "all_at_once": ({"bidirectional": True}, Spec(None, "data"), True),
}


# The last has the others' options at once; they tell which of them is at fault.
SHARDED_BY_DEFAULT = ("zero_state", "replicated_state", "all_at_once")


@pytest.mark.parametrize(
    ("options", "spec", "ragged"),
    [
        pytest.param(
            *of, id=name, marks=() if name in SHARDED_BY_DEFAULT else pytest.mark.slow
        )
        for name, of in SHARDED.items()
    ],
)
def test_shard_map_over_the_batch_equals_one_device(options, spec, ragged, variant):
    stack = variant.build(I, H, **options)
    x, hx, variables = draw(stack)
    lengths = np.array([4, 1, 0, 3]) if ragged else None
    n = devices_for(B)
    if spec is None:
        hx = None
    elif spec == Spec():  # Every shard has the same state, of its own batch size.
        hx = jax.tree.map(lambda leaf: leaf[:, : B // n], hx)
    whole_hx = jax.tree.map(lambda leaf: np.tile(leaf, (1, B // leaf.shape[1], 1)), hx)

    def loss(variables, x, hx, lengths):
        results = stack.apply(variables, x, hx, seq_lengths=lengths)
        return sum((leaf**2).sum() for leaf in jax.tree.leaves(results)), results[0]

    @jax.jit
    def one_device(variables, x, hx, lengths):
        return jax.value_and_grad(loss, has_aux=True)(variables, x, hx, lengths)

    mesh = jax.make_mesh((n,), ("data",), axis_types=(AxisType.Auto,))

    @jax.jit
    @partial(
        jax.shard_map,
        mesh=mesh,
        in_specs=(Spec(), Spec(None, "data"), spec or Spec(), Spec("data")),
        out_specs=((Spec(), Spec(None, "data")), Spec()),
    )
    def all_devices(variables, x, hx, lengths):
        # The parameters are the same on all shards, so their gradient is summed
        # over the shards by the transposition itself.
        (value, output), gradients = jax.value_and_grad(loss, has_aux=True)(
            variables, x, hx, lengths
        )
        return (jax.lax.psum(value, "data"), output), gradients

    expected = one_device(variables, x, whole_hx, lengths)
    (value, output), gradients = all_devices(variables, x, hx, lengths)
    assert n == 1 or len(output.sharding.device_set) == n
    # Sums over the batch of up to some hundred: relative to their size.
    np.testing.assert_allclose(value, expected[0][0], rtol=TOLERANCE)
    assert_same(output, expected[0][1])
    jax.tree.map(
        partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4),
        gradients,
        expected[1],
    )


def test_shards_add_their_gradients_after_a_loop_and_not_in_it(variant):
    """One sum of each over all shards, instead of one at every step."""
    stack = variant.build(I, H, 2, bidirectional=True)
    x, _, variables = draw(stack)
    mesh = jax.make_mesh((devices_for(B),), ("data",), axis_types=(AxisType.Auto,))

    @partial(
        jax.shard_map,
        mesh=mesh,
        in_specs=(Spec(), Spec(None, "data")),
        out_specs=Spec(),
    )
    def gradients(variables, x):
        return jax.grad(lambda v: (stack.apply(v, x)[0] ** 2).sum())(variables)

    jaxpr = jax.make_jaxpr(gradients)(variables, x).jaxpr
    loops = [e for e in equations(jaxpr) if e.primitive.name == "scan"]
    assert loops or (stack.implementation == "native" and not stack.remat)
    assert "psum" in str(jaxpr)
    assert not any("psum" in str(loop) for loop in loops)


@pytest.mark.parametrize(
    ("bidirectional", "ragged"),
    [
        (False, False),
        (True, True),
        pytest.param(False, True, marks=pytest.mark.slow),
        pytest.param(True, False, marks=pytest.mark.slow),
    ],
)
def test_a_mesh_with_explicit_sharding_equals_one_device(
    bidirectional, ragged, variant
):
    stack = variant.build(I, H, 2, bidirectional=bidirectional)
    x, hx, variables = draw(stack)
    hx = hx if ragged else None
    lengths = np.array([4, 1, 0, 3]) if ragged else None

    @jax.jit
    def run(variables, x, hx, lengths):
        return stack.apply(variables, x, hx, seq_lengths=lengths)

    expected = run(variables, x, hx, lengths)
    mesh = jax.make_mesh((devices_for(B),), ("data",), axis_types=(AxisType.Explicit,))
    with jax.set_mesh(mesh):
        sharded = jax.device_put(x, NamedSharding(mesh, Spec(None, "data")))
        if ragged:
            lengths = jax.device_put(lengths, NamedSharding(mesh, Spec("data")))
        # The states, too.
        replicated, hx = jax.device_put((variables, hx), NamedSharding(mesh, Spec()))
        output, state = run(replicated, sharded, hx, lengths)
    assert jax.typeof(output).sharding.spec == Spec(None, "data", None)
    assert_same(jax.tree.map(np.asarray, (output, state)), expected)


SHARDED_AXES = {
    "batch": (Spec(None, "data"), B),
    "steps": (Spec("data"), T),
    "features": (Spec(None, None, "data"), 2 * I),
}


@pytest.mark.parametrize(("spec", "size"), SHARDED_AXES.values(), ids=SHARDED_AXES)
def test_gradients_on_a_mesh_with_explicit_sharding_equal_one_devices(
    spec, size, variant
):
    stack = variant.build(2 * I, H, 2, bidirectional=True)
    x, _, variables = draw(stack)
    variables = jax.tree.map(lambda array: array / 2, variables)

    @jax.jit
    @partial(jax.grad, argnums=(0, 1))
    def gradients(variables, x):
        return jnp.sin(stack.apply(variables, x)[0]).sum()

    expected = gradients(variables, x)
    mesh = jax.make_mesh(
        (devices_for(size),), ("data",), axis_types=(AxisType.Explicit,)
    )
    with jax.set_mesh(mesh):
        sharded = jax.device_put(x, NamedSharding(mesh, spec))
        replicated = jax.device_put(variables, NamedSharding(mesh, Spec()))
        got = gradients(replicated, sharded)
    assert_gradients_same(got, expected)


def assert_gradients_same(got, expected):
    def check(got, expected):
        bound = TOLERANCE * max(1, abs(expected).max())  # A ReLU's reach 40.
        np.testing.assert_allclose(np.asarray(got), expected, rtol=0, atol=bound)

    jax.tree.map(check, got, expected)


@pytest.mark.parametrize("dropout", [0.5, pytest.param(1.0, marks=pytest.mark.slow)])
def test_dropout_on_a_mesh_with_explicit_sharding_equals_one_devices(dropout, variant):
    stack = variant.build(I, H, 3, dropout=dropout)
    x, _, variables = draw(stack)
    rngs = {"dropout": jax.random.key(3)}

    def value(variables, x):
        output, _ = stack.apply(variables, x, deterministic=False, rngs=rngs)
        return jnp.sin(output).sum(), output

    run = jax.value_and_grad(value, argnums=(0, 1), has_aux=True)
    (_, expected), gradients = run(variables, x)
    mesh = jax.make_mesh((devices_for(B),), ("data",), axis_types=(AxisType.Explicit,))
    sharded = jax.device_put(x, NamedSharding(mesh, Spec(None, "data")))
    replicated = jax.device_put(variables, NamedSharding(mesh, Spec()))
    for run_there in (run, jax.jit(run)):
        with jax.set_mesh(mesh):
            (_, output), got = run_there(replicated, sharded)
        assert jax.typeof(output).sharding.spec == Spec(None, "data", None)
        assert_same(np.asarray(output), expected)
        assert_gradients_same(got, gradients)


def test_nnx_bridge_gives_the_linen_output(variant):
    stack = variant.build(I, H, 2, bidirectional=True)
    x, hx, variables = draw(stack)
    model = nnx.bridge.ToNNX(stack, rngs=nnx.Rngs(0))
    nnx.bridge.lazy_init(model, x)
    params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    expected = stack.apply({"params": params}, x, hx)
    assert jax.tree.structure(params) == jax.tree.structure(variables["params"])
    assert_same(model(x, hx), expected)


def test_a_stack_inside_another_linen_module(variant):
    class Outer(nn.Module):
        @nn.compact
        def __call__(self, x):
            return variant.build(I, H, name="stack")(x)

    stack = variant.build(I, H)
    x, _, variables = draw(stack)
    outer = {"params": {"stack": variables["params"]}}
    assert_same(Outer().apply(outer, x), stack.apply(variables, x))


def test_traced_lengths_count_as_known_ones_do(variant):
    """And outside of [0, T] they are clipped."""
    stack = variant.build(I, H)
    x, _, variables = draw(stack)
    run = partial(stack.apply, variables, x)
    traced = jax.jit(lambda lengths: run(seq_lengths=lengths))
    expected = run(seq_lengths=np.array([1, 0, 3, T]))
    for lengths in ([1, 0, 3, T], [1, -1000, 3, T + 1]):
        assert_same(traced(np.array(lengths)), expected)


# Dropout


def dropped(key):
    """The output of two layers with dropout between them."""
    lstm = StackedLSTM(I, H, 2, dropout=0.5)
    x, _, variables = draw(lstm)
    return lstm.apply(variables, x, deterministic=False, rngs={"dropout": key})[0]


@pytest.mark.parametrize("kind", KINDS)
def test_dropout_reaches_every_kind(kind):
    stack = KINDS[kind].build(I, H, 2, dropout=0.5)
    x, hx, variables = draw(stack)
    noisy = partial(stack.apply, deterministic=False, rngs={"dropout": KEY})
    got, _ = noisy(variables, x, hx)
    expected, _ = stack.apply(variables, x, hx)
    assert (got != expected).any()


@pytest.mark.parametrize("bidirectional", [False, True])
def test_with_dropout_each_layer_starts_from_its_own_state(bidirectional):
    """Of a probability so small that it drops nothing."""
    options = {"bidirectional": bidirectional, "proj_size": 2}
    plain, noisy = (StackedLSTM(I, H, 3, dropout=p, **options) for p in (0.0, 1e-9))
    x, hx, variables = draw(plain)
    run = partial(noisy.apply, deterministic=False, rngs={"dropout": KEY})
    assert_same(run(variables, x, hx), plain.apply(variables, x, hx))


def test_dropout_is_off_by_default():
    with_dropout, without = StackedLSTM(I, H, 2, dropout=0.5), StackedLSTM(I, H, 2)
    x, _, variables = draw(without)
    got = with_dropout.apply(variables, x, rngs={"dropout": KEY})
    jax.tree.map(np.testing.assert_array_equal, got, without.apply(variables, x))


def test_dropout_is_reproduced_by_its_key():
    np.testing.assert_array_equal(dropped(KEY), dropped(KEY))


def test_dropout_takes_the_keys_that_flaxs_own_takes():
    """The stream `params`, which one bare key is, and nnx's default stream, if there
    is no stream `dropout`."""
    lstm = StackedLSTM(I, H, 2, dropout=0.5)
    x, _, variables = draw(lstm)
    noisy = partial(lstm.apply, variables, x, deterministic=False)
    results = [noisy(rngs=rngs)[0] for rngs in (KEY, {"params": KEY})]
    np.testing.assert_array_equal(*results)
    assert (results[0] != lstm.apply(variables, x)[0]).any()

    model = nnx.bridge.ToNNX(lstm, rngs=nnx.Rngs(0))
    nnx.bridge.lazy_init(model, x)
    first, second = (model(x, deterministic=False)[0] for _ in range(2))
    assert (first != second).any()


def test_dropout_differs_by_its_key():
    assert (dropped(KEY) != dropped(jax.random.key(1))).any()


def test_dropout_zeroes_a_fraction_and_scales_the_rest():
    """Read off the gradient of the second layer's input kernel, at a kernel of zero.

    There row k of the gradient is what the second layer reads at k, times a factor
    that does not depend on what it reads.
    """
    p, hidden = 0.25, 1000
    lstm = StackedLSTM(1, hidden, 2, dropout=p, bias=False)
    x = jnp.ones((1, 1, 1))
    shapes = jax.eval_shape(lstm.init, KEY, x)["params"]
    params = jax.tree.map(lambda s: np.zeros(s.shape, np.float32), shapes)
    for gate in "ig":
        params["layer_0"]["i" + gate]["kernel"][:] = 1.0

    def loss(kernel, **options):
        changed = {**params["layer_1"], "ig": {"kernel": kernel}}
        output, _ = lstm.apply({"params": {**params, "layer_1": changed}}, x, **options)
        return output[0, 0, 0]

    of_kernel = jax.grad(loss)
    kernel = params["layer_1"]["ig"]["kernel"]
    plain = of_kernel(kernel)[:, 0]
    noisy = of_kernel(kernel, deterministic=False, rngs={"dropout": KEY})[:, 0]
    assert (plain != 0).all()
    zeroed = np.asarray(noisy == 0)
    # Five standard errors of a fraction of 1000.
    assert zeroed.mean() == pytest.approx(p, abs=5 * np.sqrt(p * (1 - p) / hidden))
    np.testing.assert_allclose(noisy[~zeroed], plain[~zeroed] / (1 - p), rtol=1e-5)


def test_dropout_draws_a_mask_for_every_step_and_row():
    """As torch does; one mask for all steps would be variational dropout."""
    hidden = 8
    lstm = StackedLSTM(1, hidden, 2, dropout=0.5, bias=False)
    x = jnp.ones((6, 5, 1))
    shapes = jax.eval_shape(lstm.init, KEY, x)["params"]
    params = jax.tree.map(lambda s: np.zeros(s.shape, np.float32), shapes)
    for layer in ("layer_0", "layer_1"):
        for gate in "ig":
            params[layer]["i" + gate]["kernel"][:] = 1.0
    # The forget gate shut, so that a step of the second layer sees its own input only.
    params["layer_1"]["if"]["kernel"][:] = -1e4
    output, _ = lstm.apply(
        {"params": params}, x, deterministic=False, rngs={"dropout": KEY}
    )
    per_step_and_row = np.asarray(output[..., 0])
    assert all(len(np.unique(row)) > 1 for row in per_step_and_row)
    assert all(len(np.unique(column)) > 1 for column in per_step_and_row.T)


def test_dropout_of_everything_reaches_every_layer_but_not_the_last_output():
    lstm = StackedLSTM(I, H, 2, dropout=1.0)
    x, _, variables = draw(lstm)
    output, (h_n, c_n) = lstm.apply(
        variables, x, deterministic=False, rngs={"dropout": KEY}
    )
    second = StackedLSTM(H, H)
    params = {"layer_0": variables["params"]["layer_1"]}
    expected, (h_second, c_second) = second.apply(
        {"params": params}, jnp.zeros((T, B, H))
    )
    assert (expected != 0).all()
    assert_same((output, h_n[1:], c_n[1:]), (expected, h_second, c_second))


def test_dropout_leaves_the_states_of_the_layer_below_alone():
    lstm = StackedLSTM(I, H, 2, dropout=1.0)
    x, _, variables = draw(lstm)
    _, plain = lstm.apply(variables, x)
    _, noisy = lstm.apply(variables, x, deterministic=False, rngs={"dropout": KEY})
    assert_same([state[0] for state in noisy], [state[0] for state in plain])


ONE_LAYER = {
    "lstm": lambda layers: StackedLSTM(28, H, layers, dropout=0.5),
    "gru": lambda layers: StackedGRU(28, H, layers, dropout=0.5),
    "lstm_classifier": lambda layers: LSTMClassifier(num_layers=layers, dropout=0.5),
    "rnn_classifier": lambda layers: RNNClassifier(num_layers=layers, dropout=0.5),
}


@pytest.mark.parametrize("make", ONE_LAYER.values(), ids=ONE_LAYER)
def test_dropout_with_one_layer_warns_the_caller_once(make):
    with pytest.warns(UserWarning, match=r"^dropout: .*num_layers=1") as caught:
        make(1)
    assert len(caught) == 1
    assert caught[0].filename == __file__


@pytest.mark.parametrize("make", ONE_LAYER.values(), ids=ONE_LAYER)
def test_dropout_with_two_layers_does_not_warn(make):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make(2)


@pytest.mark.parametrize("make", ONE_LAYER.values(), ids=ONE_LAYER)
def test_dropout_with_one_layer_does_not_warn_again_in_use(make):
    with pytest.warns(UserWarning, match="^dropout"):
        model = make(1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        variables = model.init(KEY, jnp.zeros((2, 3, 28)))
        model.apply(variables, jnp.zeros((2, 3, 28)))
        nn.Sequential([model]).init(KEY, jnp.zeros((2, 3, 28)))
        model.tabulate(KEY, jnp.zeros((2, 3, 28)))
        model.clone()


def test_dropout_with_one_layer_needs_no_key_and_does_nothing():
    with pytest.warns(UserWarning, match="^dropout"):
        lstm = StackedLSTM(I, H, dropout=0.5)
    x, _, variables = draw(lstm)
    got = lstm.apply(variables, x, deterministic=False)
    jax.tree.map(np.testing.assert_array_equal, got, lstm.apply(variables, x))
