"""Shapes as torch's documentation has them, dtypes, parameters and their first draw."""

from functools import partial

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from kinds import KINDS, unpacked

from flax_lstm import GRUClassifier, LSTMClassifier, RNNClassifier, StackedLSTM
from flax_lstm._lstm_cell import LSTMCell
from flax_lstm._rnn_cell import RNNCell

T, B, I, H, P = 5, 3, 4, 6, 2  # noqa: E741
KEY = jax.random.key(0)


def shapes_of(stack, *args, **kwargs):
    """[output, h_n], and c_n if there is one, without computing them."""
    variables = jax.eval_shape(stack.init, KEY, *args, **kwargs)
    return jax.tree.leaves(jax.eval_shape(stack.apply, variables, *args, **kwargs))


# From the tables of torch.nn.LSTM's, GRU's and RNN's documentation; L is 2. Of the
# others only an LSTM has c_n and a projection.
SHAPES = [
    # options, input, output, h_n, c_n
    ({}, (T, B, I), (T, B, H), (2, B, H), (2, B, H)),
    ({"batch_first": True}, (B, T, I), (B, T, H), (2, B, H), (2, B, H)),
    ({}, (T, I), (T, H), (2, H), (2, H)),
    ({"batch_first": True}, (T, I), (T, H), (2, H), (2, H)),
    ({"bidirectional": True}, (T, B, I), (T, B, 2 * H), (4, B, H), (4, B, H)),
    ({"proj_size": P}, (T, B, I), (T, B, P), (2, B, P), (2, B, H)),
    (
        {"bidirectional": True, "proj_size": P, "batch_first": True},
        (B, T, I),
        (B, T, 2 * P),
        (4, B, P),
        (4, B, H),
    ),
    ({"bidirectional": True, "proj_size": P}, (T, I), (T, 2 * P), (4, P), (4, H)),
    ({}, (1, B, I), (1, B, H), (2, B, H), (2, B, H)),
    ({}, (T, 0, I), (T, 0, H), (2, 0, H), (2, 0, H)),
]


SHAPES_BY_KIND = [
    (kind, options, input, expected[: 1 + len(KINDS[kind].state_names)])
    for kind in KINDS
    for options, input, *expected in SHAPES
    if kind == "lstm" or "proj_size" not in options
]


@pytest.mark.parametrize(("kind", "options", "input", "expected"), SHAPES_BY_KIND)
def test_shapes(kind, options, input, expected):
    stack = KINDS[kind].build(I, H, 2, **options)
    chex.assert_shape(shapes_of(stack, jnp.zeros(input)), expected)


def test_batch_first_never_moves_the_axes_of_a_given_state():
    lstm = StackedLSTM(I, H, 2, batch_first=True, proj_size=P)
    hx = jnp.zeros((2, B, P)), jnp.zeros((2, B, H))
    results = shapes_of(lstm, jnp.zeros((B, T, I)), hx)
    chex.assert_shape(results, [(B, T, P), (2, B, P), (2, B, H)])


@pytest.mark.parametrize(
    ("options", "input", "logits"),
    [
        ({}, (B, 28, 28), (B, 10)),
        ({"batch_first": False}, (28, B, 28), (B, 10)),
        ({}, (28, 28), (10,)),
        ({"bidirectional": True, "proj_size": P, "num_classes": 3}, (B, 7, 28), (B, 3)),
    ],
)
def test_classifier_shapes(options, input, logits):
    model = LSTMClassifier(**options)
    result, _ = jax.eval_shape(model.init_with_output, KEY, jnp.zeros(input))
    chex.assert_shape(result, logits)


GATES = "ifgo"


def lstm_shapes(prefix, input_size, width=H, bias=True, projection=False):
    shapes = {f"{prefix}/i{g}/kernel": (input_size, H) for g in GATES}
    shapes |= {f"{prefix}/h{g}/kernel": (width, H) for g in GATES}
    shapes |= {f"{prefix}/h{g}/bias": (H,) for g in GATES} if bias else {}
    shapes |= {f"{prefix}/hr/kernel": (H, width)} if projection else {}
    return shapes


def gru_shapes(prefix, input_size, bias=True):
    shapes = {f"{prefix}/i{g}/kernel": (input_size, H) for g in "rzn"}
    shapes |= {f"{prefix}/h{g}/kernel": (H, H) for g in "rzn"}
    biases = {f"{prefix}/{name}/bias": (H,) for name in ("ir", "iz", "in", "hn")}
    return shapes | (biases if bias else {})


def rnn_shapes(prefix, input_size, bias=True):
    shapes = {f"{prefix}/i/kernel": (input_size, H), f"{prefix}/h/kernel": (H, H)}
    return shapes | ({f"{prefix}/i/bias": (H,)} if bias else {})


PARAMETER_TREES = [
    (
        "lstm",
        {"num_layers": 2, "bidirectional": True, "proj_size": P},
        lstm_shapes("layer_0", I, P, projection=True)
        | lstm_shapes("layer_0_reverse", I, P, projection=True)
        | lstm_shapes("layer_1", 2 * P, P, projection=True)
        | lstm_shapes("layer_1_reverse", 2 * P, P, projection=True),
    ),
]
for kind, cell_shapes in [
    ("lstm", lstm_shapes),
    ("gru", gru_shapes),
    ("rnn_tanh", rnn_shapes),
    ("rnn_relu", rnn_shapes),
]:
    PARAMETER_TREES += [
        (kind, {}, cell_shapes("layer_0", I)),
        (kind, {"bias": False}, cell_shapes("layer_0", I, bias=False)),
        (
            kind,
            {"num_layers": 2, "bidirectional": True},
            cell_shapes("layer_0", I)
            | cell_shapes("layer_0_reverse", I)
            | cell_shapes("layer_1", 2 * H)
            | cell_shapes("layer_1_reverse", 2 * H),
        ),
    ]


@pytest.mark.parametrize(("kind", "options", "expected"), PARAMETER_TREES)
def test_parameter_names_and_shapes(kind, options, expected):
    stack = KINDS[kind].build(I, H, **options)
    variables = jax.eval_shape(stack.init, KEY, jnp.zeros((T, B, I)))
    assert set(variables) == {"params"}
    flat = flatten_dict(variables["params"], sep="/")
    assert {name: leaf.shape for name, leaf in flat.items()} == expected


HEAD = {"head/kernel": (H, 3), "head/bias": (3,)}
ATTENTION = {
    "attention/projection/kernel": (H, H),
    "attention/projection/bias": (H,),
    "attention/query/kernel": (H, 1),
}


@pytest.mark.parametrize(
    ("classifier", "options", "expected"),
    [
        (LSTMClassifier, {}, lstm_shapes("lstm/layer_0", I)),
        (GRUClassifier, {"pooling": "mean"}, gru_shapes("gru/layer_0", I)),
        (
            RNNClassifier,
            {"pooling": "attention"},
            rnn_shapes("rnn/layer_0", I) | ATTENTION,
        ),
    ],
)
def test_classifier_parameters_are_the_stack_the_pooling_and_a_head(
    classifier, options, expected
):
    model = classifier(3, input_size=I, hidden_size=H, num_layers=1, **options)
    params = jax.eval_shape(model.init, KEY, jnp.zeros((B, T, I)))["params"]
    flat = {name: leaf.shape for name, leaf in flatten_dict(params, sep="/").items()}
    assert flat == expected | HEAD


def test_a_cells_two_states_are_two_draws():
    cell = LSTMCell(H, carry_init=nn.initializers.normal())
    c, h = cell.initialize_carry(jax.random.key(0), (B, I))
    assert (c != h).all()


FLAX_CELLS = {
    "lstm": (nn.OptimizedLSTMCell, {}),
    "gru": (nn.GRUCell, {}),
    "rnn_tanh": (nn.SimpleCell, {}),
    "rnn_relu": (nn.SimpleCell, {"activation_fn": nn.relu}),
}


@pytest.mark.parametrize(
    "kind",
    ["lstm", "gru"]
    + [pytest.param(k, marks=pytest.mark.slow) for k in ("rnn_tanh", "rnn_relu")],
)
@pytest.mark.parametrize(
    "bidirectional", [pytest.param(False, marks=pytest.mark.slow), True]
)
def test_weights_of_flaxs_own_cell_fit_and_give_flaxs_own_output(kind, bidirectional):
    """Two layers of `nn.RNN` over Flax's cell, stacked by hand."""
    flax_cell, options = FLAX_CELLS[kind]
    x = jax.random.normal(KEY, (T, B, I))
    y, params = x, {}
    for layer in range(2):
        outputs = []
        for suffix in ("", "_reverse") if bidirectional else ("",):
            name = f"layer_{layer}{suffix}"
            rnn = nn.RNN(
                flax_cell(H, bias_init=nn.initializers.normal(), **options),
                time_major=True,
                reverse=bool(suffix),
                keep_order=True,
            )
            variables = rnn.init(jax.random.fold_in(KEY, len(params)), y)
            params[name] = variables["params"]["cell"]
            outputs.append(rnn.apply(variables, y))
        y = jnp.concatenate(outputs, axis=-1)

    stack = KINDS[kind].build(I, H, 2, bidirectional=bidirectional)
    output, _ = stack.apply({"params": params}, x)
    # Flax concatenates an LSTM's kernels, so the sums of a product may be ordered
    # otherwise: a few roundings of float32 at values below 1.
    np.testing.assert_allclose(output, y, rtol=0, atol=1e-6)


def test_a_residual_cell_is_flaxs_own():
    h, x = (
        jax.random.normal(jax.random.key(n), (B, size)) for n, size in ((1, H), (2, I))
    )
    flax_cell = nn.SimpleCell(H, residual=True)
    variables = flax_cell.init(KEY, h, x)
    got = RNNCell(H, residual=True).apply(variables, h, x)
    jax.tree.map(np.testing.assert_array_equal, got, flax_cell.apply(variables, h, x))


F32, BF16 = jnp.float32, jnp.bfloat16

DTYPES = [
    # dtype, param_dtype, input, (output, h_n, c_n)
    (None, F32, F32, (F32, F32, F32)),
    (BF16, F32, F32, (BF16, BF16, F32)),
    (BF16, BF16, BF16, (BF16, BF16, F32)),
    (None, BF16, BF16, (BF16, BF16, F32)),
    (None, F32, BF16, (F32, F32, F32)),
    (None, BF16, F32, (F32, F32, F32)),
    (F32, BF16, BF16, (F32, F32, F32)),
    (jnp.float16, F32, F32, (jnp.float16, jnp.float16, F32)),
]


@pytest.mark.parametrize(("dtype", "param_dtype", "of_input", "expected"), DTYPES)
@pytest.mark.parametrize("proj_size", [0, P])
def test_dtypes_of_results(dtype, param_dtype, of_input, expected, proj_size):
    lstm = StackedLSTM(
        I, H, 2, proj_size=proj_size, dtype=dtype, param_dtype=param_dtype
    )
    results = shapes_of(lstm, jnp.zeros((T, B, I), of_input))
    assert tuple(leaf.dtype for leaf in results) == expected


@pytest.mark.parametrize(("dtype", "param_dtype", "of_input", "expected"), DTYPES)
@pytest.mark.parametrize("kind", ["gru", "rnn_tanh"])
def test_dtypes_of_results_without_a_cell_state(
    kind, dtype, param_dtype, of_input, expected
):
    stack = KINDS[kind].build(I, H, 2, dtype=dtype, param_dtype=param_dtype)
    results = shapes_of(stack, jnp.zeros((T, B, I), of_input))
    assert tuple(leaf.dtype for leaf in results) == expected[:2]


@pytest.mark.parametrize("pooling", ["last", "final", "mean", "attention"])
def test_dtype_of_the_logits_is_that_of_the_computation(pooling):
    model = GRUClassifier(pooling=pooling, bidirectional=True, dtype=BF16)
    logits, _ = jax.eval_shape(model.init_with_output, KEY, jnp.zeros((B, T, 28)))
    assert logits.dtype == BF16


@pytest.mark.parametrize("param_dtype", [F32, BF16])
@pytest.mark.parametrize("classifier", [LSTMClassifier, GRUClassifier, RNNClassifier])
def test_dtype_of_parameters(classifier, param_dtype):
    model = classifier(
        input_size=I, hidden_size=H, param_dtype=param_dtype, pooling="attention"
    )
    variables = jax.eval_shape(model.init, KEY, jnp.zeros((B, T, I)))
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {
        jnp.dtype(param_dtype)
    }


class Remembering(LSTMClassifier):
    forget_bias: float = 1.0


def test_a_field_that_a_subclass_adds_is_an_option_of_its_stack():
    x = jnp.zeros((B, T, 28))
    plain, changed = (
        kind(num_layers=1).init(KEY, x)["params"]["lstm"]["layer_0"]
        for kind in (LSTMClassifier, Remembering)
    )
    np.testing.assert_allclose(changed["hf"]["bias"], plain["hf"]["bias"] + 1)
    np.testing.assert_array_equal(changed["hi"]["bias"], plain["hi"]["bias"])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("param_dtype", ["float32", "float64"])
def test_float64_input_is_computed_in_float64(param_dtype, kind, x64):
    stack = KINDS[kind].build(I, H, param_dtype=param_dtype)
    results = shapes_of(stack, np.zeros((T, B, I)))
    assert {leaf.dtype for leaf in results} == {jnp.dtype("float64")}


@pytest.mark.parametrize("kind", KINDS)
def test_parameters_that_are_there_take_part_in_promotion(kind):
    """As after torch's `lstm.bfloat16()`; `param_dtype` is for making them."""
    stack, x = KINDS[kind].build(I, H, 2), jnp.zeros((T, B, I), BF16)
    made = stack.init(KEY, x)
    low = jax.tree.map(lambda array: array.astype(BF16), made)
    for params, x_dtype, expected in (
        (low, BF16, BF16),
        (low, F32, F32),
        (made, BF16, F32),
    ):
        output, _ = jax.eval_shape(stack.apply, params, x.astype(x_dtype))
        assert output.dtype == expected


def test_with_parameters_in_float64_all_is_computed_in_float64(x64):
    lstm, x = StackedLSTM(I, H), np.zeros((T, B, I), np.float32)
    wide = jax.tree.map(lambda array: array.astype("float64"), lstm.init(KEY, x))
    assert jax.eval_shape(lstm.apply, wide, x)[0].dtype == "float64"


@pytest.mark.parametrize(
    "model",
    [
        *(k.build(28, H, 2) for k in KINDS.values()),
        LSTMClassifier(),
        GRUClassifier(),
        RNNClassifier(),
    ],
    ids=lambda model: type(model).__name__,
)
def test_flax_shows_what_is_in_it(model):
    text = model.tabulate(KEY, jnp.zeros((B, T, 28)), console_kwargs={"width": 200})
    assert "layer_1" in text


def test_a_forget_bias_is_added_to_what_an_initializer_puts_in_a_box():
    boxed = nn.with_partitioning(nn.initializers.ones, ("units",))
    for forget_bias in (0.0, 1.0):
        lstm = StackedLSTM(I, H, bias_init=boxed, forget_bias=forget_bias)
        layer = lstm.init(KEY, jnp.zeros((T, B, I)))["params"]["layer_0"]
        for gate in ("hi", "hf"):
            box = layer[gate]["bias"]
            assert isinstance(box, nn.Partitioned)
            expected = 1 + forget_bias * (gate == "hf")
            np.testing.assert_array_equal(box.value, jnp.full(H, expected))


@pytest.mark.parametrize("remat", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_an_empty_batch(kind, remat):
    stack = KINDS[kind].build(I, H, 2, bidirectional=True, remat=remat)
    shapes = jax.eval_shape(stack.init, KEY, jnp.zeros((T, B, I)))
    variables = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    output, state = stack.apply(variables, jnp.zeros((T, 0, I)))
    assert output.shape == (T, 0, 2 * H)
    assert {array.shape for array in unpacked(state)} == {(4, 0, H)}


STRICT = [
    (kind, {"implementation": implementation, **options})
    for kind in KINDS
    for implementation in KINDS[kind].implementations
    for options in [
        {},
        {"dtype": BF16},
        *([{"proj_size": P}] if kind == "lstm" else []),
    ]
]


@pytest.mark.parametrize("x64", [False, True])
@pytest.mark.parametrize(
    ("kind", "options"), [*STRICT, ("lstm", {"implementation": "native"})]
)
def test_no_dtype_and_no_axis_is_promoted_in_silence(kind, options, x64, native):
    """As JAX's users ask for it who want to see each such place."""
    stack = KINDS[kind].build(I, H, 2, bidirectional=True, dropout=0.5, **options)
    with jax.enable_x64(x64):
        assert_strict(stack, deterministic=False, rngs={"dropout": KEY})


@pytest.mark.parametrize("x64", [False, True])
@pytest.mark.parametrize("dtype", [None, BF16])
@pytest.mark.parametrize("pooling", ["last", "final", "mean", "attention"])
def test_a_classifier_promotes_no_dtype_and_no_axis_in_silence(pooling, dtype, x64):
    with jax.enable_x64(x64):
        assert_strict(
            LSTMClassifier(
                *(3, I, H),
                batch_first=False,
                bidirectional=True,
                pooling=pooling,
                dtype=dtype,
            )
        )


def assert_strict(model, **arguments):
    @jax.grad
    def gradient(variables, x):
        results = model.apply(
            variables, x, seq_lengths=np.array([1, T, 0]), **arguments
        )
        return sum(array.astype(F32).sum() for array in jax.tree.leaves(results))

    x = jnp.ones((T, B, I), F32)
    with (
        jax.numpy_rank_promotion("raise"),
        jax.numpy_dtype_promotion("strict"),
    ):
        jax.eval_shape(gradient, jax.eval_shape(model.init, KEY, x), x)


def test_hidden_state_takes_part_in_promotion_and_cell_state_does_not():
    lstm = StackedLSTM(I, H, param_dtype=BF16)
    x = jnp.zeros((T, B, I), BF16)
    h_0, c_0 = jnp.zeros((1, B, H), BF16), jnp.zeros((1, B, H), F32)
    assert shapes_of(lstm, x, (h_0, c_0))[0].dtype == BF16
    assert shapes_of(lstm, x, (h_0.astype(F32), c_0))[0].dtype == F32


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_returned_states_continue_a_bfloat16_run_without_loss(kind):
    """c_n is float32, and goes back in as such: two chunks are the whole, exactly."""
    stack = KINDS[kind].build(I, H, 2, dtype=BF16)
    x = jax.random.normal(KEY, (T, B, I))
    variables = stack.init(KEY, x)
    whole, state_of_whole = stack.apply(variables, x)
    first, state = stack.apply(variables, x[:2])
    second, state = stack.apply(variables, x[2:], state)
    np.testing.assert_array_equal(jnp.concatenate([first, second]), whole)
    jax.tree.map(np.testing.assert_array_equal, state, state_of_whole)


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_stays_near_float32(kind):
    x = jax.random.normal(KEY, (T, B, I))
    build = KINDS[kind].build
    variables = build(I, H, 2).init(KEY, x)
    expected, _ = build(I, H, 2).apply(variables, x)
    output, _ = build(I, H, 2, dtype=BF16).apply(variables, x)
    # bfloat16 rounds at 2**-8 of values below 1; some of them add up over the steps.
    np.testing.assert_allclose(output.astype(F32), expected, rtol=0, atol=2**-5)


BFLOAT16 = [
    *(
        (kind, {"implementation": implementation})
        for kind in KINDS
        for implementation in KINDS[kind].implementations
    ),
    ("lstm", {"implementation": "fused", "proj_size": P}),
]


@pytest.mark.parametrize(("kind", "options"), BFLOAT16)
def test_bfloat16_gradients_are_those_of_float32_up_to_rounding(kind, options):
    """Over 1024 rows and steps, whose terms bfloat16 itself could not add up."""
    build = partial(KINDS[kind].build, I, H, **options)
    x = jax.random.normal(KEY, (64, 16, I))
    variables = build().init(KEY, x)

    def gradient(**options):
        @jax.grad
        def run(variables):
            return build(**options).apply(variables, x)[0].astype(F32).mean()

        return run(variables)

    jax.tree.map(assert_nearly, gradient(dtype=BF16), gradient())


@pytest.mark.parametrize("implementation", ["scan", "fused"])
def test_bfloat16_has_gates_that_are_almost_closed(implementation):
    """σ(-8) is 3e-4, and a gate that is exactly 0 learns nothing."""
    build = partial(StackedLSTM, I, H, implementation=implementation)
    x = jax.random.normal(KEY, (20, 16, I))
    variables = build().init(KEY, x)
    variables["params"]["layer_0"]["hi"]["bias"] -= 8

    def value_and_gradient(**options):
        @jax.value_and_grad
        def run(variables):
            _, (_, c_n) = build(**options).apply(variables, x)
            return (c_n.astype(F32) * jnp.arange(1, H + 1)).mean()

        return run(variables)

    # z = -8 alone is rounded by as much as 3 %.
    nearly = partial(assert_nearly, tolerance=0.06)
    jax.tree.map(nearly, value_and_gradient(dtype=BF16), value_and_gradient())


def assert_nearly(got, expected, tolerance=0.02):
    assert got.dtype == F32
    # A few roundings at 2**-8 each, as independent as they are many.
    assert jnp.linalg.norm(got - expected) < tolerance * jnp.linalg.norm(expected)


def test_parameters_of_a_subclass_do_not_decide_the_stacks_dtype():
    class Scaled(StackedLSTM):
        @nn.compact
        def __call__(self, input):
            scale = self.param("scale", nn.initializers.ones, (), F32)
            output, _ = super().__call__(input)
            return scale, output

    stack = Scaled(I, H, param_dtype=BF16)
    x = jnp.ones((T, B, I), BF16)
    variables = stack.init(KEY, x)
    scale, output = stack.apply(variables, x)
    assert (scale.dtype, output.dtype) == (F32, BF16)


@pytest.mark.parametrize(("dtype", "steps"), [("uint8", 300), ("int8", 200)])
def test_lengths_of_a_narrow_dtype_mean_what_they_say(dtype, steps):
    """Also where the dtype can't hold the number of steps."""
    rnn = KINDS["rnn_relu"].build(1, 1)
    x = jnp.ones((steps, 2, 1))
    variables = rnn.init(KEY, x)
    lengths = np.array([100, 3], dtype)
    for run in (rnn.apply, jax.jit(rnn.apply)):
        output, _ = run(variables, x, seq_lengths=lengths)
        wide, _ = run(variables, x, seq_lengths=lengths.astype("int32"))
        np.testing.assert_array_equal(output, wide)


@pytest.mark.parametrize("dtype", [">i4", "<i8", ">u2"])
def test_lengths_may_have_any_byte_order(dtype):
    gru = KINDS["gru"].build(I, H)
    x = jnp.ones((T, 2, I))
    variables = gru.init(KEY, x)
    output, _ = gru.apply(variables, x, seq_lengths=np.array([2, T], dtype))
    expected, _ = gru.apply(variables, x, seq_lengths=[2, T])
    np.testing.assert_array_equal(output, expected)


@pytest.mark.parametrize("implementation", ["scan", "fused"])
def test_a_bfloat16_runs_cell_state_is_float32_between_steps(implementation):
    """It counts to 300; in bfloat16 257 is 256, for ever."""
    lstm = StackedLSTM(1, 2, dtype=BF16, implementation=implementation)
    x = jnp.zeros((300, 1, 1))
    variables = jax.tree.map(jnp.zeros_like, lstm.init(KEY, x))
    for gate in ("hi", "hf", "hg"):
        variables["params"]["layer_0"][gate]["bias"] += 40
    _, (_, c_n) = lstm.apply(variables, x)
    np.testing.assert_array_equal(c_n, np.full((1, 1, 2), 300))


def test_attention_is_drawn_from_torch_linears_range():
    model = LSTMClassifier(
        input_size=2, hidden_size=64, num_layers=1, pooling="attention"
    )
    params = model.init(KEY, jnp.zeros((1, 1, 2)))["params"]["attention"]
    for leaf in jax.tree.leaves(params):
        assert 0.9 / 8 < np.abs(leaf).max() <= 1 / 8


def drawn(size=64, kind="lstm", **options):
    """Leaves of a one-layer stack of a size that makes statistics steady."""
    stack = KINDS[kind].build(size, size, **options)
    return flatten_dict(stack.init(KEY, jnp.zeros((1, 1, size)))["params"], sep="/")


def assert_uniform(values, bound):
    """U(-bound, bound) by its support, mean and standard deviation."""
    values = np.concatenate([np.ravel(v) for v in values])
    sigma = bound / np.sqrt(3)
    assert np.abs(values).max() <= bound
    assert np.abs(values).max() > 0.99 * bound
    # Five standard errors of the mean; the key is fixed.
    assert abs(values.mean()) < 5 * sigma / np.sqrt(values.size)
    assert values.std() == pytest.approx(sigma, rel=0.03)


KERNELS = [
    ("lstm", ["ii", "if", "ig", "io"]),
    ("lstm", ["hi", "hf", "hg", "ho"]),
    ("gru", ["ir", "iz", "in"]),
    ("gru", ["hr", "hz", "hn"]),
    ("rnn_tanh", ["i"]),
    ("rnn_tanh", ["h"]),
]


@pytest.mark.parametrize(("kind", "names"), KERNELS)
def test_kernels_are_drawn_from_torchs_range(kind, names):
    flat = drawn(kind=kind)
    assert_uniform([flat[f"layer_0/{name}/kernel"] for name in names], 1 / np.sqrt(64))


def test_the_projection_is_drawn_from_torchs_range():
    assert_uniform([drawn(proj_size=63)["layer_0/hr/kernel"]], 1 / np.sqrt(64))


def test_the_ranges_bound_is_that_of_the_hidden_size_not_of_the_input():
    lstm = StackedLSTM(2, 100)
    params = lstm.init(KEY, jnp.zeros((1, 1, 2)))["params"]
    largest = max(np.abs(leaf["kernel"]).max() for leaf in params["layer_0"].values())
    assert 0.09 < largest <= 0.1


SUMMED = [
    ("lstm", ["hi", "hf", "hg", "ho"]),
    ("gru", ["ir", "iz"]),
    ("rnn_tanh", ["i"]),
]


@pytest.mark.parametrize(("kind", "names"), SUMMED)
def test_biases_are_drawn_as_the_sum_of_torchs_two(kind, names):
    size = 1024
    flat = drawn(size, kind)
    biases = np.concatenate([flat[f"layer_0/{name}/bias"] for name in names])
    bound = 1 / np.sqrt(size)
    assert bound < np.abs(biases).max() <= 2 * bound
    sigma = np.sqrt(2 / (3 * size))  # Each of the two has variance bound² / 3.
    # Five standard errors of 1024 values or more, for the mean and for the deviation
    # (sigma·√((κ-1)/4n) with the triangle's κ = 2.4, so 1.9 %).
    assert abs(biases.mean()) < 5 * sigma / np.sqrt(biases.size)
    assert biases.std() == pytest.approx(sigma, rel=5 * 0.019)


def test_the_biases_of_n_are_drawn_as_torchs():
    size = 1024
    flat = drawn(size, "gru")
    assert_uniform([flat[f"layer_0/{n}/bias"] for n in ("in", "hn")], 1 / np.sqrt(size))


@pytest.mark.parametrize("kind", ["lstm", "gru", "rnn_tanh"])
def test_no_two_leaves_are_drawn_alike(kind):
    flat = drawn(8, kind)
    leaves = [np.ravel(leaf)[0].item() for leaf in flat.values()]
    assert len(set(leaves)) == len(leaves)


# A projection's own initializer, if none is given, is the recurrent kernels'.
REPLACEMENTS = [
    ("lstm", "kernel_init", ["ii/kernel", "if/kernel", "ig/kernel", "io/kernel"]),
    (
        "lstm",
        "recurrent_kernel_init",
        ["hi/kernel", "hf/kernel", "hg/kernel", "ho/kernel", "hr/kernel"],
    ),
    ("lstm", "bias_init", ["hi/bias", "hf/bias", "hg/bias", "ho/bias"]),
    ("lstm", "projection_kernel_init", ["hr/kernel"]),
    ("gru", "kernel_init", ["ir/kernel", "iz/kernel", "in/kernel"]),
    ("gru", "recurrent_kernel_init", ["hr/kernel", "hz/kernel", "hn/kernel"]),
    ("gru", "bias_init", ["ir/bias", "iz/bias", "in/bias", "hn/bias"]),
    ("rnn_tanh", "kernel_init", ["i/kernel"]),
    ("rnn_tanh", "recurrent_kernel_init", ["h/kernel"]),
    ("rnn_tanh", "bias_init", ["i/bias"]),
]


@pytest.mark.parametrize(("kind", "option", "leaves"), REPLACEMENTS)
def test_an_initializer_replaces_its_own_leaves_only(kind, option, leaves):
    options = {option: nn.initializers.constant(7.0)}
    if kind == "lstm":
        options["proj_size"] = 3
    flat = drawn(8, kind, **options)
    replaced = {name for name, leaf in flat.items() if (leaf == 7.0).all()}
    assert replaced == {f"layer_0/{leaf}" for leaf in leaves}


def test_forget_bias_is_added_to_the_forget_gates_bias_only():
    plain, shifted = drawn(8), drawn(8, forget_bias=1.5)
    for name, leaf in shifted.items():
        offset = 1.5 if name == "layer_0/hf/bias" else 0.0
        np.testing.assert_array_equal(leaf, plain[name] + offset, err_msg=name)


def test_forget_bias_is_no_part_of_the_computation():
    x = jax.random.normal(KEY, (T, B, I))
    variables = StackedLSTM(I, H).init(KEY, x)
    expected, _ = StackedLSTM(I, H).apply(variables, x)
    output, _ = StackedLSTM(I, H, forget_bias=3.0).apply(variables, x)
    np.testing.assert_array_equal(output, expected)


@pytest.mark.parametrize("bidirectional", [False, True])
def test_the_head_is_drawn_from_torch_linears_range(bidirectional):
    model = LSTMClassifier(
        num_classes=500, input_size=2, hidden_size=32, bidirectional=bidirectional
    )
    head = model.init(KEY, jnp.zeros((1, 1, 2)))["params"]["head"]
    bound = 1 / np.sqrt(64 if bidirectional else 32)
    assert_uniform([head["kernel"]], bound)
    assert 0.95 * bound < np.abs(head["bias"]).max() <= bound
