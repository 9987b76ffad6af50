"""`pooling`: what the head of a classifier is given, and what it is trained by.

Against torch it is tested with the classifiers' weights, in test_torch_weights.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec as Spec

from flax_lstm import GRUClassifier, StackedGRU
from flax_lstm._pooling import mean_over_steps

B, T, I, H = 4, 6, 3, 5  # noqa: E741
LENGTHS = np.array([4, 0, T, 1])
# Sums of some dozen float32 numbers of order 1, in another order.
TOLERANCE = 1e-5


def classifier(pooling, **options):
    options = {"bidirectional": True, "num_layers": 1} | options
    return GRUClassifier(2, I, H, pooling=pooling, **options)


def drawn(model):
    """Input (B, T, I), and variables that are all standard normal numbers."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((B, T, I)).astype(np.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), x)
    return x, jax.tree.map(
        lambda s: rng.standard_normal(s.shape).astype(np.float32), shapes
    )


def last(row, params):
    return row[-1]


def final(row, params):
    """The reverse direction ends at the first step."""
    return np.concatenate([row[-1, :H], row[0, H:]])


def mean(row, params):
    return row.mean(axis=0)


def attention(row, params):
    projection, query = params["attention"]["projection"], params["attention"]["query"]
    u = np.tanh(row @ projection["kernel"] + projection["bias"])
    weights = np.exp(u @ query["kernel"])
    return (weights * row).sum(axis=0) / weights.sum()


POOLINGS = {"last": last, "final": final, "mean": mean, "attention": attention}


@pytest.mark.parametrize("num_layers", [1, 2])
@pytest.mark.parametrize("pooling", POOLINGS)
def test_the_head_reads_each_rows_own_steps_pooled(pooling, num_layers):
    model = classifier(pooling, num_layers=num_layers)
    x, variables = drawn(model)
    logits = model.apply(variables, x, seq_lengths=LENGTHS)
    params = variables["params"]
    stack = StackedGRU(I, H, num_layers, batch_first=True, bidirectional=True)
    output, _ = stack.apply({"params": params["gru"]}, x, seq_lengths=LENGTHS)
    for row, length in enumerate(LENGTHS):
        steps = np.asarray(output[row, :length])
        pooled = POOLINGS[pooling](steps, params) if length else np.zeros(2 * H)
        expected = pooled @ params["head"]["kernel"] + params["head"]["bias"]
        np.testing.assert_allclose(logits[row], expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_padding_of_any_content_changes_no_logit_and_no_gradient(pooling):
    """Rows of length 0 among them: every gradient is finite."""
    model = classifier(pooling)
    x, variables = drawn(model)
    padding = np.arange(T) >= LENGTHS[:, None]
    with_nan = np.where(padding[..., None], np.nan, x)

    @jax.jit
    def run(variables, x):
        def loss(variables, x):
            logits = model.apply(variables, x, seq_lengths=LENGTHS)
            return (logits**2).sum(), logits

        return jax.grad(loss, (0, 1), has_aux=True)(variables, x)

    got, expected = run(variables, with_nan), run(variables, x)
    jax.tree.map(np.testing.assert_array_equal, got, expected)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(got))
    (_, of_input), _ = got
    assert not np.asarray(of_input)[padding].any()
    assert np.asarray(of_input)[~padding].any(axis=-1).sum() >= (LENGTHS > 0).sum()


@pytest.mark.parametrize("pooling", POOLINGS)
def test_every_parameter_is_trained(pooling):
    model = classifier(pooling, bidirectional=False)
    x, variables = drawn(model)
    gradients = jax.jit(jax.grad(lambda v: (model.apply(v, x) ** 2).sum()))(variables)
    assert all(leaf.any() for leaf in jax.tree.leaves(gradients))


@pytest.mark.parametrize("pooling", POOLINGS)
def test_layouts_and_full_lengths_do_not_change_the_logits(pooling):
    model = classifier(pooling)
    x, variables = drawn(model)
    by_time = classifier(pooling, batch_first=False)

    @jax.jit
    def run(variables, x):
        return model.apply(variables, x), {
            "time_first": by_time.apply(variables, x.swapaxes(0, 1)),
            "full_lengths": model.apply(variables, x, seq_lengths=jnp.full(B, T)),
            "unbatched": jnp.stack([model.apply(variables, row) for row in x]),
        }

    expected, results = run(variables, x)
    for name, logits in results.items():
        np.testing.assert_allclose(
            logits, expected, rtol=0, atol=TOLERANCE, err_msg=name
        )


@pytest.mark.parametrize("pooling", POOLINGS)
def test_traced_lengths_count_as_known_ones_do(pooling):
    """And outside of [0, T] they are clipped, as the stack does."""
    model = classifier(pooling)
    x, variables = drawn(model)
    run = jax.jit(lambda lengths: model.apply(variables, x, seq_lengths=lengths))
    expected = model.apply(variables, x, seq_lengths=LENGTHS)
    outside = np.where(LENGTHS == T, 99, np.where(LENGTHS == 0, -9, LENGTHS))
    for lengths in (LENGTHS, outside):
        np.testing.assert_allclose(run(lengths), expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("pooling", ["last", "final"])
def test_with_one_direction_the_last_output_is_the_final_state(pooling):
    model = classifier(pooling, bidirectional=False, num_layers=2)
    x, variables = drawn(model)
    logits = model.apply(variables, x)
    params = variables["params"]
    stack = StackedGRU(I, H, 2, batch_first=True)
    output, _ = stack.apply({"params": params["gru"]}, x)
    head = params["head"]
    expected = output[:, -1] @ head["kernel"] + head["bias"]
    np.testing.assert_allclose(logits, expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_a_mesh_with_explicit_sharding_gives_the_same_logits(pooling):
    model = classifier(pooling)
    x, variables = drawn(model)
    run = jax.jit(lambda v, x, lengths: model.apply(v, x, seq_lengths=lengths))
    expected = run(variables, x, LENGTHS)
    devices = min(2, jax.device_count())  # Where there is one GPU, one.
    mesh = jax.make_mesh((devices,), ("rows",), (AxisType.Explicit,))
    with jax.set_mesh(mesh):
        rows = NamedSharding(mesh, Spec("rows"))
        x, lengths = jax.device_put((x, LENGTHS), rows)
        logits = run(jax.device_put(variables, NamedSharding(mesh, Spec())), x, lengths)
    assert jax.typeof(logits).sharding.spec == Spec("rows", None)
    np.testing.assert_allclose(logits, expected, rtol=0, atol=TOLERANCE)


def test_without_a_query_attention_is_the_mean():
    model = classifier("attention")
    x, variables = drawn(model)
    params = dict(variables["params"])
    query = {"kernel": np.zeros((2 * H, 1), np.float32)}
    params["attention"] = {**params["attention"], "query": query}
    got = model.apply({"params": params}, x, seq_lengths=LENGTHS)
    del params["attention"]
    expected = classifier("mean").apply({"params": params}, x, seq_lengths=LENGTHS)
    np.testing.assert_allclose(got, expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("pooling", ["mean", "attention"])
def test_long_sequences_are_pooled_in_float32(pooling):
    """A bfloat16 sum of 2000 equal numbers would stop growing at 256 of them."""
    steps = 2000
    model = classifier(pooling, dtype=jnp.bfloat16, bidirectional=False)
    _, variables = drawn(model)
    x = jnp.zeros((1, steps, I))
    got = model.apply(variables, x)
    in_float32 = classifier(pooling, bidirectional=False)
    # bfloat16 rounds at 2**-8; logits and the products behind them are of order 4.
    np.testing.assert_allclose(
        got.astype(jnp.float32), in_float32.apply(variables, x), rtol=0, atol=2**-4
    )


def test_a_bfloat16_attentions_gradients_are_those_of_float32_up_to_rounding():
    """Its bias's is a sum over all rows and steps, whose terms nearly cancel."""
    x = jax.random.normal(jax.random.key(0), (16, 64, I))
    variables = classifier("attention").init(jax.random.key(1), x)

    def gradient(**options):
        @jax.grad
        def run(variables):
            logits = classifier("attention", **options).apply(variables, x)
            return logits[:, 0].astype(jnp.float32).mean()

        return run(variables)["params"]["attention"]

    def check(got, expected):
        # The outputs are rounded at 2**-8; torch's bias, under autocast, is off by 0.4.
        assert jnp.linalg.norm(got - expected) < 0.03 * jnp.linalg.norm(expected)

    jax.tree.map(check, gradient(dtype=jnp.bfloat16), gradient())


def test_a_mean_is_over_the_very_number_of_steps():
    """bfloat16 itself counts in twos from 256 on."""
    lengths = jnp.array([3, 259])
    valid = jnp.arange(300)[:, None] < lengths
    ones = valid[..., None].astype(jnp.bfloat16)
    np.testing.assert_array_equal(mean_over_steps(ones, lengths), jnp.ones((2, 1)))
