"""Shapes as torch's documentation has them, dtypes, parameters and their first draw."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from flax_lstm import LSTMClassifier, StackedLSTM

T, B, I, H, P = 5, 3, 4, 6, 2  # noqa: E741
KEY = jax.random.key(0)


def shapes_of(lstm, *args, **kwargs):
    """(output, h_n, c_n) without computing them."""
    variables = jax.eval_shape(lstm.init, KEY, *args, **kwargs)
    output, (h_n, c_n) = jax.eval_shape(lstm.apply, variables, *args, **kwargs)
    return output, h_n, c_n


# From the table of torch.nn.LSTM's documentation; L is 2.
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


@pytest.mark.parametrize(("options", "input", "output", "h_n", "c_n"), SHAPES)
def test_shapes(options, input, output, h_n, c_n):
    lstm = StackedLSTM(I, H, 2, **options)
    chex.assert_shape(shapes_of(lstm, jnp.zeros(input)), [output, h_n, c_n])


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


def cell_shapes(prefix, input_size, width, bias=True, projection=False):
    shapes = {f"{prefix}/i{g}/kernel": (input_size, H) for g in GATES}
    shapes |= {f"{prefix}/h{g}/kernel": (width, H) for g in GATES}
    shapes |= {f"{prefix}/h{g}/bias": (H,) for g in GATES} if bias else {}
    shapes |= {f"{prefix}/hr/kernel": (H, width)} if projection else {}
    return shapes


PARAMETER_TREES = [
    ({}, cell_shapes("layer_0", I, H)),
    ({"bias": False}, cell_shapes("layer_0", I, H, bias=False)),
    (
        {"num_layers": 2},
        cell_shapes("layer_0", I, H) | cell_shapes("layer_1", H, H),
    ),
    (
        {"num_layers": 2, "bidirectional": True, "proj_size": P},
        cell_shapes("layer_0", I, P, projection=True)
        | cell_shapes("layer_0_reverse", I, P, projection=True)
        | cell_shapes("layer_1", 2 * P, P, projection=True)
        | cell_shapes("layer_1_reverse", 2 * P, P, projection=True),
    ),
]


@pytest.mark.parametrize(("options", "expected"), PARAMETER_TREES)
def test_parameter_names_and_shapes(options, expected):
    lstm = StackedLSTM(I, H, **options)
    variables = jax.eval_shape(lstm.init, KEY, jnp.zeros((T, B, I)))
    assert set(variables) == {"params"}
    flat = flatten_dict(variables["params"], sep="/")
    assert {name: leaf.shape for name, leaf in flat.items()} == expected


def test_classifier_parameters_are_the_stack_and_a_head():
    model = LSTMClassifier(num_classes=3, input_size=I, hidden_size=H, num_layers=1)
    params = jax.eval_shape(model.init, KEY, jnp.zeros((B, T, I)))["params"]
    flat = {name: leaf.shape for name, leaf in flatten_dict(params, sep="/").items()}
    head = {"head/kernel": (H, 3), "head/bias": (3,)}
    assert flat == cell_shapes("lstm/layer_0", I, H) | head


@pytest.mark.parametrize("bidirectional", [False, True])
def test_weights_of_flaxs_own_cell_fit_and_give_flaxs_own_output(bidirectional):
    """Two layers of `nn.RNN(nn.OptimizedLSTMCell)`, stacked by hand."""
    x = jax.random.normal(KEY, (T, B, I))
    y, params = x, {}
    for layer in range(2):
        outputs = []
        for suffix in ("", "_reverse") if bidirectional else ("",):
            name = f"layer_{layer}{suffix}"
            rnn = nn.RNN(
                nn.OptimizedLSTMCell(H, bias_init=nn.initializers.normal()),
                time_major=True,
                reverse=bool(suffix),
                keep_order=True,
            )
            variables = rnn.init(jax.random.fold_in(KEY, len(params)), y)
            params[name] = variables["params"]["cell"]
            outputs.append(rnn.apply(variables, y))
        y = jnp.concatenate(outputs, axis=-1)

    lstm = StackedLSTM(I, H, 2, bidirectional=bidirectional)
    output, _ = lstm.apply({"params": params}, x)
    # Flax concatenates the gates' kernels, so the sums of a product may be ordered
    # otherwise: a few roundings of float32 at values below 1.
    np.testing.assert_allclose(output, y, rtol=0, atol=1e-6)


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


@pytest.mark.parametrize("param_dtype", [F32, BF16])
def test_dtype_of_parameters(param_dtype):
    model = LSTMClassifier(input_size=I, hidden_size=H, param_dtype=param_dtype)
    variables = jax.eval_shape(model.init, KEY, jnp.zeros((B, T, I)))
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {
        jnp.dtype(param_dtype)
    }


@pytest.mark.parametrize("param_dtype", ["float32", "float64"])
def test_float64_input_is_computed_in_float64(param_dtype, x64):
    lstm = StackedLSTM(I, H, param_dtype=param_dtype)
    results = shapes_of(lstm, np.zeros((T, B, I)))
    assert {leaf.dtype for leaf in results} == {jnp.dtype("float64")}


def test_hidden_state_takes_part_in_promotion_and_cell_state_does_not():
    lstm = StackedLSTM(I, H, param_dtype=BF16)
    x = jnp.zeros((T, B, I), BF16)
    h_0, c_0 = jnp.zeros((1, B, H), BF16), jnp.zeros((1, B, H), F32)
    assert shapes_of(lstm, x, (h_0, c_0))[0].dtype == BF16
    assert shapes_of(lstm, x, (h_0.astype(F32), c_0))[0].dtype == F32


def test_returned_states_continue_a_bfloat16_run_without_loss():
    """c_n is float32, and goes back in as such: two chunks are the whole, exactly."""
    lstm = StackedLSTM(I, H, 2, dtype=BF16)
    x = jax.random.normal(KEY, (T, B, I))
    variables = lstm.init(KEY, x)
    whole, state_of_whole = lstm.apply(variables, x)
    first, state = lstm.apply(variables, x[:2])
    second, state = lstm.apply(variables, x[2:], state)
    np.testing.assert_array_equal(jnp.concatenate([first, second]), whole)
    jax.tree.map(np.testing.assert_array_equal, state, state_of_whole)


def test_bfloat16_stays_near_float32():
    x = jax.random.normal(KEY, (T, B, I))
    variables = StackedLSTM(I, H, 2).init(KEY, x)
    expected, _ = StackedLSTM(I, H, 2).apply(variables, x)
    output, _ = StackedLSTM(I, H, 2, dtype=BF16).apply(variables, x)
    # bfloat16 rounds at 2**-8 of values below 1; some of them add up over the steps.
    np.testing.assert_allclose(output.astype(F32), expected, rtol=0, atol=2**-5)


@pytest.mark.parametrize("dtype", [jnp.int32, jnp.uint8, jnp.bool_, jnp.complex64])
def test_input_that_is_not_floating_is_refused(dtype):
    with pytest.raises(
        TypeError, match=f"input: expected a floating.*{jnp.dtype(dtype)}"
    ):
        StackedLSTM(I, H).init(KEY, jnp.zeros((T, B, I), dtype))


def drawn(size=64, **options):
    """Leaves of a one-layer stack of a size that makes statistics steady."""
    lstm = StackedLSTM(size, size, **options)
    return flatten_dict(lstm.init(KEY, jnp.zeros((1, 1, size)))["params"], sep="/")


def assert_uniform(values, bound):
    """U(-bound, bound) by its support, mean and standard deviation."""
    values = np.concatenate([np.ravel(v) for v in values])
    sigma = bound / np.sqrt(3)
    assert np.abs(values).max() <= bound
    assert np.abs(values).max() > 0.99 * bound
    # Five standard errors of the mean; the key is fixed.
    assert abs(values.mean()) < 5 * sigma / np.sqrt(values.size)
    assert values.std() == pytest.approx(sigma, rel=0.03)


@pytest.mark.parametrize("kind", ["i", "h"])
def test_kernels_are_drawn_from_torchs_range(kind):
    flat = drawn()
    assert_uniform([flat[f"layer_0/{kind}{g}/kernel"] for g in GATES], 1 / np.sqrt(64))


def test_the_projection_is_drawn_from_torchs_range():
    assert_uniform([drawn(proj_size=63)["layer_0/hr/kernel"]], 1 / np.sqrt(64))


def test_the_ranges_bound_is_that_of_the_hidden_size_not_of_the_input():
    lstm = StackedLSTM(2, 100)
    params = lstm.init(KEY, jnp.zeros((1, 1, 2)))["params"]
    largest = max(np.abs(leaf["kernel"]).max() for leaf in params["layer_0"].values())
    assert 0.09 < largest <= 0.1


def test_biases_are_drawn_as_the_sum_of_torchs_two():
    size = 256
    flat = drawn(size)
    biases = np.concatenate([flat[f"layer_0/h{g}/bias"] for g in GATES])
    bound = 1 / np.sqrt(size)
    assert bound < np.abs(biases).max() <= 2 * bound
    sigma = np.sqrt(2 / (3 * size))  # Each of the two has variance bound² / 3.
    # Five standard errors of 1024 values, for the mean and for the deviation
    # (sigma·√((κ-1)/4n) with the triangle's κ = 2.4, so 1.9 %).
    assert abs(biases.mean()) < 5 * sigma / np.sqrt(biases.size)
    assert biases.std() == pytest.approx(sigma, rel=5 * 0.019)


def test_no_two_leaves_are_drawn_alike():
    flat = drawn(8)
    leaves = [np.ravel(leaf)[0].item() for leaf in flat.values()]
    assert len(set(leaves)) == len(leaves)


REPLACEMENTS = {
    "kernel_init": [f"layer_0/i{g}/kernel" for g in GATES],
    "recurrent_kernel_init": [f"layer_0/h{g}/kernel" for g in GATES]
    + ["layer_0/hr/kernel"],  # Its own initializer, if none is given, is this one.
    "bias_init": [f"layer_0/h{g}/bias" for g in GATES],
    "projection_kernel_init": ["layer_0/hr/kernel"],
}


@pytest.mark.parametrize(("option", "leaves"), REPLACEMENTS.items(), ids=REPLACEMENTS)
def test_an_initializer_replaces_its_own_leaves_only(option, leaves):
    flat = drawn(8, proj_size=3, **{option: nn.initializers.constant(7.0)})
    assert sorted(n for n, leaf in flat.items() if (leaf == 7.0).all()) == sorted(
        leaves
    )


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
