"""Wrong arguments: the error, the argument's name, what was expected and got."""

import functools
from fractions import Fraction

import flax.errors
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cudnn_stand_in import stand_in_for_cudnn

from flax_lstm import (
    GRUClassifier,
    LSTMClassifier,
    RNNClassifier,
    SequenceClassifier,
    StackedGRU,
    StackedLSTM,
    StackedRNN,
)
from flax_lstm._cell import HiddenStateCell
from flax_lstm._lstm_cell import LSTMCell

T, B, I, H = 5, 3, 4, 6  # noqa: E741
KEY = jax.random.key(0)


STACKS = [StackedLSTM, StackedGRU, StackedRNN]
CLASSIFIERS = [LSTMClassifier, GRUClassifier, RNNClassifier]


def stack(kind=StackedLSTM, **options):
    return kind(**{"input_size": I, "hidden_size": H, **options})


OPTIONS = [
    # option, value, error, message
    ("input_size", 0, ValueError, "input_size: expected a positive integer, got 0"),
    (
        "input_size",
        4.0,
        TypeError,
        r"input_size: expected a positive integer, got 4\.0",
    ),
    ("hidden_size", 0, ValueError, "hidden_size: expected a positive integer, got 0"),
    ("hidden_size", -1, ValueError, "hidden_size: expected a positive integer, got -1"),
    ("hidden_size", 2.5, TypeError, r"hidden_size: expected a positive .*, got 2\.5"),
    ("hidden_size", True, TypeError, "hidden_size: expected a positive .*, got True"),
    ("num_layers", 0, ValueError, "num_layers: expected a positive integer, got 0"),
    ("num_layers", "2", TypeError, "num_layers: expected a positive integer, got '2'"),
    ("bias", 1, TypeError, "bias: expected True or False, got 1"),
    ("batch_first", None, TypeError, "batch_first: expected True or False, got None"),
    (
        "bidirectional",
        "no",
        TypeError,
        "bidirectional: expected True or False, got 'no'",
    ),
    ("dropout", -0.1, ValueError, r"dropout: expected a number in \[0, 1\].*got -0\.1"),
    ("dropout", 1.5, ValueError, r"dropout: expected a number in \[0, 1\].*got 1\.5"),
    ("dropout", float("nan"), ValueError, r"dropout: .*in \[0, 1\].*got nan"),
    ("dropout", "a", TypeError, r"dropout: expected a number in \[0, 1\].*got 'a'"),
    ("dropout", True, TypeError, r"dropout: expected a number in \[0, 1\].*got True"),
    (
        "dtype",
        jnp.int32,
        TypeError,
        r"dtype: expected a floating-point dtype .*jnp\.float32, got .*int32",
    ),
    ("dtype", "complex64", TypeError, "dtype: expected a floating.*, got 'complex64'"),
    ("dtype", "no dtype", TypeError, "dtype: expected a floating.*, got 'no dtype'"),
    ("param_dtype", int, TypeError, "param_dtype: expected a floating.*, got .*int"),
    (
        "implementation",
        "fast",
        ValueError,
        "implementation: expected one of .*'scan'.*, got 'fast'",
    ),
    ("remat", 1, TypeError, "remat: expected True or False, got 1"),
]
# None of them may be taken for one that is not given.
INITIALIZERS = [
    (name, value, TypeError, rf"{name}: expected an initializer, .*, got {value!r}")
    for name in ("kernel_init", "recurrent_kernel_init", "bias_init")
    for value in (0.0, 1.0, "orthogonal")
]
LSTM_OPTIONS = [
    ("proj_size", -1, ValueError, "proj_size: expected zero or a positive .*, got -1"),
    (
        "proj_size",
        1.0,
        TypeError,
        r"proj_size: expected zero or a positive .*, got 1\.0",
    ),
    ("proj_size", H, ValueError, "proj_size: .*smaller than hidden_size 6, got 6"),
    ("proj_size", H + 1, ValueError, "proj_size: .*smaller than hidden_size 6, got 7"),
]
RNN_OPTIONS = [
    (
        "nonlinearity",
        "sigmoid",
        ValueError,
        "nonlinearity: expected one of 'tanh', 'relu', got 'sigmoid'",
    ),
    ("nonlinearity", None, ValueError, "nonlinearity: expected one of .*, got None"),
]
STACK_OPTIONS = [
    ("forget_bias", "1", TypeError, "forget_bias: expected a finite number, got '1'"),
    (
        "forget_bias",
        np.inf,
        ValueError,
        "forget_bias: expected a finite number, got inf",
    ),
]
CLASSIFIER_OPTIONS = [
    ("num_classes", 0, ValueError, "num_classes: expected a positive integer, got 0"),
    ("num_classes", 2.0, TypeError, r"num_classes: expected a positive .*, got 2\.0"),
    (
        "pooling",
        "max",
        ValueError,
        "pooling: expected one of 'last', 'final', 'mean', 'attention', got 'max'",
    ),
    ("pooling", None, ValueError, "pooling: expected one of .*, got None"),
]
OPTIONS_BY_KIND = [(kind, *row) for kind in STACKS + CLASSIFIERS for row in OPTIONS]
OPTIONS_BY_KIND += [(kind, *row) for kind in CLASSIFIERS for row in CLASSIFIER_OPTIONS]
OPTIONS_BY_KIND += [
    (kind, *row)
    for kinds, rows in [
        ((StackedLSTM, LSTMClassifier), LSTM_OPTIONS),
        ((StackedLSTM,), STACK_OPTIONS),
        (STACKS, INITIALIZERS),
        ((StackedRNN, RNNClassifier), RNN_OPTIONS),
    ]
    for kind in kinds
    for row in rows
]


@pytest.mark.parametrize(
    ("kind", "option", "value", "error", "message"), OPTIONS_BY_KIND
)
def test_options(kind, option, value, error, message):
    with pytest.raises(error, match="^" + message):
        stack(kind, **{option: value})


@pytest.mark.parametrize("kind", STACKS)
@pytest.mark.parametrize("option", StackedGRU.initializer_options)
@pytest.mark.parametrize(
    ("init", "got"),
    [
        (nn.initializers.lecun_normal, "lecun_normal, which returned a function"),
        (nn.initializers.zeros_init, "zeros_init, too many positional arguments"),
    ],
)
def test_what_makes_an_initializer_is_none(kind, option, init, got):
    message = f"^{option}: expected an initializer, a function of .*, got {got}"
    with pytest.raises(TypeError, match=message):
        jax.eval_shape(stack(kind, **{option: init}).init, KEY, X)


@pytest.mark.parametrize("kind", [StackedGRU, StackedRNN, GRUClassifier, RNNClassifier])
def test_only_the_lstm_has_a_projection(kind):
    with pytest.raises(TypeError, match="unexpected keyword argument 'proj_size'"):
        stack(kind, proj_size=2)


def test_forget_bias_of_any_kind_of_number():
    variables = stack(forget_bias=Fraction(1, 2)).init(KEY, X)
    expected = stack(forget_bias=0.5).init(KEY, X)
    jax.tree.map(np.testing.assert_array_equal, variables, expected)


def test_forget_bias_without_a_bias():
    with pytest.raises(ValueError, match=r"^forget_bias: expected 0 .*, got 1\.0"):
        stack(bias=False, forget_bias=1.0)


def test_a_none_param_dtype_is_refused():
    with pytest.raises(
        TypeError, match=r"^param_dtype: expected a floating.*, got None"
    ):
        stack(param_dtype=None)


X = np.zeros((T, B, I), np.float32)
ROW = np.zeros((T, I), np.float32)
S = np.zeros((1, B, H), np.float32)
CUT = S[:, :2]

CALLS = [
    # options, input, arguments, error, message
    ({}, X[0, 0], {}, ValueError, r"input: expected 2D .* or 3D .*, got 1D .*\(4,\)"),
    ({}, X[None], {}, ValueError, r"input: expected 2D .* or 3D .*, got 4D"),
    (
        {},
        X[..., :3],
        {},
        ValueError,
        r"input: .*input_size 4, got 3 in shape \(5, 3, 3\)",
    ),
    (
        {},
        X[:0],
        {},
        ValueError,
        r"input: .*length larger than 0, got shape \(0, 3, 4\)",
    ),
    ({}, ROW[:0], {}, ValueError, r"input: .*length larger than 0, got shape \(0, 4\)"),
    (
        {"batch_first": True},
        X[:, :0],
        {},
        ValueError,
        r"input: .*length larger than 0, got shape \(5, 0, 4\)",
    ),
    ({}, X.astype(int), {}, TypeError, "input: expected a floating-point .*, got int"),
    ({}, X > 0, {}, TypeError, "input: expected a floating-point dtype, got bool"),
    (
        {},
        X.astype(np.uint8),
        {},
        TypeError,
        "input: expected a floating-point dtype, got uint8",
    ),
    (
        {},
        X + 0j,
        {},
        TypeError,
        "input: expected a floating-point dtype, got complex64",
    ),
    ({}, None, {}, TypeError, "input: expected an array of floating.*, got None"),
    ({}, "abc", {}, TypeError, "input: expected an array of floating.*, got 'abc'"),
    (
        {},
        [[1.0], [1.0, 2.0]],
        {},
        TypeError,
        "input: expected an array of floating.*list",
    ),
    (
        {},
        X,
        {"hx": (CUT, S)},
        ValueError,
        r"h_0: expected shape \(1, 3, 6\), got \(1, 2, 6\)",
    ),
    (
        {},
        X,
        {"hx": (S, CUT)},
        ValueError,
        r"c_0: expected shape \(1, 3, 6\), got \(1, 2, 6\)",
    ),
    (
        {"proj_size": 2},
        X,
        {"hx": (S, S)},
        ValueError,
        r"h_0: expected shape \(1, 3, 2\), got \(1, 3, 6\)",
    ),
    (
        {"bidirectional": True, "num_layers": 2},
        X,
        {"hx": (S, S)},
        ValueError,
        r"h_0: expected shape \(4, 3, 6\), got \(1, 3, 6\)",
    ),
    (
        {"batch_first": True},
        X.swapaxes(0, 1),
        {"hx": (S.swapaxes(0, 1),) * 2},
        ValueError,
        r"h_0: expected shape \(1, 3, 6\), got \(3, 1, 6\)",
    ),
    (
        {},
        ROW,
        {"hx": (S[:, :1], S[:, :1])},
        ValueError,
        r"h_0: expected shape \(1, 6\), got \(1, 1, 6\)",
    ),
    (
        {},
        X,
        {"hx": (S[:, 0], S[:, 0])},
        ValueError,
        r"h_0: expected shape \(1, 3, 6\), got \(1, 6\)",
    ),
    (
        {},
        X,
        {"hx": S},
        TypeError,
        r"hx: expected a tuple \(h_0, c_0\), got an array of shape \(1, 3, 6\)",
    ),
    ({}, X, {"hx": {"h": S, "c": S}}, TypeError, r"hx: .*\(h_0, c_0\), got a dict"),
    (
        {},
        X,
        {"hx": (S, S, S)},
        ValueError,
        r"hx: .*\(h_0, c_0\), got a tuple of length 3",
    ),
    (
        {},
        X,
        {"hx": (S.astype(int), S)},
        TypeError,
        "h_0: expected a floating.*, got int",
    ),
    ({}, X, {"hx": (S, S > 0)}, TypeError, "c_0: expected a floating-.*, got bool"),
    ({}, X, {"hx": (S, None)}, TypeError, "c_0: expected an array of .*, got None"),
    (
        {},
        X,
        {"seq_lengths": np.array([1, 2])},
        ValueError,
        r"seq_lengths: expected shape \(3,\), got \(2,\)",
    ),
    (
        {},
        X,
        {"seq_lengths": 3},
        ValueError,
        r"seq_lengths: expected shape \(3,\), got \(\)",
    ),
    (
        {},
        X,
        {"seq_lengths": np.ones((3, 1), int)},
        ValueError,
        r"seq_lengths: expected shape \(3,\), got \(3, 1\)",
    ),
    (
        {},
        X,
        {"seq_lengths": [1.0, 2.0, 3.0]},
        TypeError,
        "seq_lengths: expected integers, got dtype float64",
    ),
    (
        {},
        X,
        {"seq_lengths": jnp.array([True, True, False])},
        TypeError,
        "seq_lengths: expected integers, got dtype bool",
    ),
    (
        {},
        X,
        {"seq_lengths": np.array([1, 2, 3], "m8[s]")},
        TypeError,
        "seq_lengths: expected integers, got dtype timedelta",
    ),
    (
        {},
        X,
        {"seq_lengths": [[1], [2, 3], [4]]},
        TypeError,
        "seq_lengths: expected integers, got dtype object",
    ),
    (
        {},
        X,
        {"seq_lengths": [1, -1, 2]},
        ValueError,
        r"seq_lengths: expected lengths within \[0, 5\], got -1 in row 1",
    ),
    (
        {},
        X,
        {"seq_lengths": jnp.array([1, 2, 6])},
        ValueError,
        r"seq_lengths: expected lengths within \[0, 5\], got 6 in row 2",
    ),
    (
        {},
        X,
        {"seq_lengths": np.array([2**32, 1, 1])},
        ValueError,
        r"seq_lengths: expected lengths within \[0, 5\], got 4294967296 in row 0",
    ),
    (
        {},
        ROW,
        {"seq_lengths": np.array([3])},
        ValueError,
        "seq_lengths: expected None with unbatched 2D input",
    ),
    (
        {},
        X,
        {"deterministic": 0},
        TypeError,
        "deterministic: expected True or False, got 0",
    ),
    (
        {},
        X,
        {"deterministic": None},
        TypeError,
        "deterministic: expected True or False, got None",
    ),
]


# Of the stacks whose state is an array. What is no state's is common to all stacks.
HIDDEN_STATE_CALLS = [
    # hx, error, message
    (CUT, ValueError, r"h_0: expected shape \(1, 3, 6\), got \(1, 2, 6\)"),
    ((S, S), TypeError, "hx: expected an array h_0, got a tuple"),
    ([S], TypeError, "hx: expected an array h_0, got a list"),
    ({"h": S}, TypeError, "h_0: expected an array of floating.*, got a dict"),
    (S > 0, TypeError, "h_0: expected a floating-point dtype, got bool"),
]


@pytest.mark.parametrize(("options", "input", "arguments", "error", "message"), CALLS)
def test_arguments_of_a_call(options, input, arguments, error, message):
    with pytest.raises(error, match="^" + message):
        stack(**options).init(KEY, input, **arguments)
    with pytest.raises(error, match="^" + message):
        stack(**options).apply({}, input, **arguments)


def test_a_missing_key_for_dropout():
    model = stack(num_layers=2, dropout=0.5)
    # As Flax's own Dropout does: while initialising it has the parameters' key.
    variables = model.init(KEY, X, deterministic=False)
    message = r"^rngs: expected a key for dropout=0\.5 .*, got none"
    with pytest.raises(ValueError, match=message):
        model.apply(variables, X, deterministic=False)


@pytest.mark.parametrize("kind", [StackedGRU, StackedRNN])
@pytest.mark.parametrize(("hx", "error", "message"), HIDDEN_STATE_CALLS)
def test_states_of_a_call_of_the_others(kind, hx, error, message):
    with pytest.raises(error, match="^" + message):
        stack(kind).init(KEY, X, hx)


@pytest.mark.parametrize("model", [*map(stack, STACKS), *map(stack, CLASSIFIERS)])
def test_params_without_params_around_them(model):
    x = jnp.ones((B, T, I))
    variables = model.init(KEY, x)
    message = r"^variables: expected \{'params': params\}, got the params without"
    with pytest.raises(ValueError, match=message):
        model.apply(variables["params"], x)


PARAMS = {
    # changes of a stack's parameters, Flax's error, message
    "none": (lambda params: params.clear(), "CollectionNotFound", 'kernel.*"params"'),
    "of_too_few_layers": (
        lambda params: params.pop("layer_1"),
        "CollectionNotFound",
        "layer_1",
    ),
    "no_bias": (
        lambda params: params["layer_0"]["hi"].pop("bias"),
        "ParamNotFoundError",
        '"bias" in scope .*layer_0.*/hi',
    ),
    "of_another_cell": (
        lambda params: params.update(stack(StackedGRU).init(KEY, X)["params"]),
        "ParamNotFoundError",
        '"kernel" in scope .*layer_0.*/ii',
    ),
    "of_another_size": (
        lambda params: params["layer_1"]["ho"].update(kernel=jnp.ones((H, H + 1))),
        "ParamShapeError",
        rf"layer_1.*/ho.*\({H}, {H}\).*\({H}, {H + 1}\)",
    ),
    # Which can be broadcast, and which loops that are compiled would read beyond.
    "of_one_number": (
        lambda params: params["layer_0"]["hf"].update(bias=0.0),
        "ParamShapeError",
        rf"layer_0.*/hf.*\({H},\).*\(\)",
    ),
    "for_each_row": (
        lambda params: params["layer_0"]["hf"].update(bias=jnp.ones((B, H))),
        "ParamShapeError",
        rf"layer_0.*/hf.*\({H},\).*\({B}, {H}\)",
    ),
}


@pytest.mark.parametrize(("change", "error", "message"), PARAMS.values(), ids=PARAMS)
@pytest.mark.parametrize("implementation", ["scan", "fused", "native", "cudnn"])
def test_parameters_that_do_not_fit_are_flaxs_own_errors(
    implementation, change, error, message, native, monkeypatch
):
    stand_in_for_cudnn(monkeypatch)
    model = stack(num_layers=2, implementation=implementation)
    variables = jax.tree.map(lambda array: array, two_layers())
    change(variables["params"])
    with pytest.raises(getattr(flax.errors, f"Scope{error}"), match=message):
        model.apply(variables, X)


OF_ANOTHER_STACK = [
    # the stack that the weights belong to, the one that they are given to, unexpected
    ({"num_layers": 3}, {"num_layers": 2}, "layer_2"),
    (
        {"num_layers": 2, "bidirectional": True},
        {},
        "layer_0_reverse, layer_1, layer_1_reverse",
    ),
]
OF_ANOTHER_LSTM = [
    ({}, {"bias": False}, ", ".join(f"layer_0/h{gate}/bias" for gate in "fgio")),
    ({"proj_size": 2}, {}, "layer_0/hr/kernel"),
]


@pytest.mark.parametrize(
    ("kind", "given", "options", "unexpected"),
    [
        *((kind, *case) for kind in STACKS for case in OF_ANOTHER_STACK),
        *((StackedLSTM, *case) for case in OF_ANOTHER_LSTM),
        (
            StackedGRU,
            {},
            {"bias": False},
            "layer_0/hn/bias, layer_0/in/bias, layer_0/ir/bias, layer_0/iz/bias",
        ),
        (StackedRNN, {}, {"bias": False}, "layer_0/i/bias"),
    ],
)
def test_weights_of_another_stack_are_refused_as_torch_refuses_them(
    kind, given, options, unexpected
):
    model, variables = stack(kind, **options), stack(kind, **given).init(KEY, X)
    message = f"^params: unexpected {unexpected}; expected the weights of a stack with "
    for apply in (model.apply, jax.jit(model.apply)):
        with pytest.raises(ValueError, match=message + "num_layers="):
            apply(variables, X)


@pytest.mark.parametrize(
    ("kind", "module"), [(StackedLSTM, "ii"), (StackedGRU, "hr"), (StackedRNN, "h")]
)
def test_a_second_bias_of_a_gate_is_refused(kind, module):
    """As a conversion by hand gives, which does not add up torch's two."""
    variables = stack(kind).init(KEY, X)
    variables["params"]["layer_0"][module]["bias"] = np.ones(H)
    with pytest.raises(ValueError, match=f"^params: unexpected layer_0/{module}/bias;"):
        stack(kind).apply(variables, X)


class OfReLU(StackedLSTM):
    def make_cell(self, dtype, name):
        relu = nn.relu
        return LSTMCell(self.hidden_size, activation_fn=relu, dtype=dtype, name=name)


@pytest.mark.parametrize("implementation", ["fused", "native", "cudnn"])
def test_gate_functions_that_an_implementation_does_not_have(
    implementation, native, monkeypatch
):
    stand_in_for_cudnn(monkeypatch)
    variables = stack().init(KEY, X)
    expected, _ = stack(OfReLU, implementation="scan").apply(variables, X)
    got, _ = stack(OfReLU).apply(variables, X)
    np.testing.assert_array_equal(got, expected)
    assert not np.allclose(got, stack().apply(variables, X)[0])
    message = f"^implementation: expected 'scan' or 'auto' .*, got '{implementation}'"
    with pytest.raises(ValueError, match=message):
        stack(OfReLU, implementation=implementation).apply(variables, X)


def test_what_a_subclass_has_beside_the_stack_is_its_own():
    class Scaled(StackedLSTM):
        @nn.compact
        def __call__(self, input):
            scale = self.param("scale", nn.initializers.ones, ())
            output, state = super().__call__(input)
            return scale * output, state

    model = stack(Scaled, bias=False)
    variables = model.init(KEY, X)
    del variables["params"]["scale"]
    expected, _ = stack(bias=False).apply(variables, X)
    variables["params"]["scale"] = jnp.float32(2)
    np.testing.assert_allclose(model.apply(variables, X)[0], 2 * expected)


class OwnCell(HiddenStateCell, nn.RNNCellBase):
    """A cell of a user's, with names that a projection and a gate have here."""

    features: int
    num_feature_axes: int = 1

    @nn.compact
    def __call__(self, h, x):
        h_x = nn.Dense(self.features, name="ix")(x)
        h = nn.tanh(h_x + nn.Dense(self.features, name="hr")(h))
        return h, h

    def initialize_carry(self, rng, input_shape):
        return jnp.zeros((*input_shape[:-1], self.features))


class OwnStack(StackedRNN):
    cell_class = OwnCell

    @nn.nowrap
    def make_cell(self, dtype, name):
        return OwnCell(self.hidden_size, name=name)


def test_what_a_users_cell_has_is_its_own():
    model = stack(OwnStack, bias=False)
    variables = model.init(KEY, X)
    output, h_n = model.apply(variables, X)
    assert output.shape == (T, B, H)
    np.testing.assert_array_equal(output[-1], h_n[0])


def test_a_classifier_refuses_an_attention_that_it_has_not():
    variables = stack(LSTMClassifier, pooling="attention").init(KEY, X)
    message = "^params: unexpected attention; .* of a classifier with .*pooling='last'"
    with pytest.raises(ValueError, match=message):
        stack(LSTMClassifier).apply(variables, X)


def test_the_weights_of_a_classifier_with_another_cell_are_refused():
    build = functools.partial(LSTMClassifier, num_classes=2, input_size=I)
    variables = build(hidden_size=H).init(KEY, X)
    variables["params"]["gru"] = {}
    message = "^params: unexpected gru; .* of a classifier with cell='lstm'"
    with pytest.raises(ValueError, match=message):
        build(hidden_size=H).apply(variables, X)


@pytest.mark.parametrize("implementation", ["scan", "fused", "native", "cudnn"])
def test_missing_parameters_are_made_where_they_may_be(
    implementation, native, monkeypatch
):
    stand_in_for_cudnn(monkeypatch)
    model = stack(num_layers=2, implementation=implementation)
    (output, _), made = model.apply({}, X, mutable=["params"], rngs={"params": KEY})
    jax.tree.map(np.testing.assert_array_equal, made, two_layers())
    expected, _ = model.apply(two_layers(), X)
    np.testing.assert_allclose(output, expected, atol=1e-6)


@functools.cache
def two_layers():
    return stack(num_layers=2).init(KEY, X)


CLASSIFIER_CALLS = [
    # The stack's own errors come through; two stand for all.
    (X[..., :3], {}, ValueError, "input: .*input_size 4, got 3"),
    (X, {"seq_lengths": [1, 2]}, ValueError, r"seq_lengths: expected shape \(5,\)"),
]


@pytest.mark.parametrize(("input", "arguments", "error", "message"), CLASSIFIER_CALLS)
@pytest.mark.parametrize("kind", CLASSIFIERS)
def test_arguments_of_a_call_of_the_classifier(kind, input, arguments, error, message):
    model = stack(kind)
    with pytest.raises(error, match="^" + message):
        model.init(KEY, input, **arguments)


def test_what_the_classifiers_share_is_none():
    with pytest.raises(TypeError, match=r"^SequenceClassifier: expected one of its"):
        SequenceClassifier()


def test_a_torch_tensor_that_needs_a_gradient_is_refused_in_torchs_words():
    torch = pytest.importorskip("torch", reason="its tensors are the input")
    x = torch.zeros(T, B, I, requires_grad=True)
    message = r"^input: expected an array of floating.*\(.*detach\(\)"
    with pytest.raises(TypeError, match=message):
        stack().apply(two_layers(), x)


def test_a_masked_array_is_refused_with_what_to_do():
    with pytest.raises(TypeError, match=r"^input: expected an array.*\.filled\(\)"):
        stack().apply(two_layers(), np.ma.array(X))
    lengths = np.ma.array([1, 2, 3], mask=[False, True, False])
    message = r"^seq_lengths: expected .*integers, got a masked array.*\.filled\(0\)"
    with pytest.raises(TypeError, match=message):
        stack().apply(two_layers(), X, seq_lengths=lengths)


def test_lengths_on_the_device_need_no_transfer_to_it():
    lengths = jnp.array([T, 1, 0])
    run = functools.partial(
        stack(num_layers=2).apply, two_layers(), jnp.asarray(X), seq_lengths=lengths
    )
    expected, _ = run()
    with jax.transfer_guard_host_to_device("disallow"):
        output, _ = run()
    np.testing.assert_array_equal(output, expected)


def test_what_is_not_the_inputs_fault_is_not_called_that():
    variables = two_layers()
    with (
        jax.transfer_guard("disallow_explicit"),
        pytest.raises(jax.errors.JaxRuntimeError, match=r"Disallowed .* transfer"),
    ):
        stack(num_layers=2).apply(variables, np.asarray(X))


def test_what_torch_has_itself_is_refused_with_what_to_do():
    torch = pytest.importorskip("torch", reason="its objects are the arguments")
    with pytest.raises(TypeError, match=r"^dtype: .* of JAX .*, got torch\.float32$"):
        stack(dtype=torch.float32)
    packed = torch.nn.utils.rnn.pack_sequence([torch.ones(T, I)])
    message = "^input: expected an array .*got a PackedSequence; .* seq_lengths="
    with pytest.raises(TypeError, match=message):
        stack().apply(two_layers(), packed)
    weights = torch.nn.LSTM(I, H).state_dict()
    message = "^params: .* got torch's, weight_ih_l0; .* params_from_torch"
    with pytest.raises(ValueError, match=message):
        stack().apply({"params": weights}, X)


def test_a_traced_deterministic_is_refused():
    message = (
        r"^deterministic: expected True or False.* bool; under jax\.jit name it in"
    )
    with pytest.raises(TypeError, match=message):
        jax.jit(lambda d: stack().init(KEY, X, deterministic=d))(True)


def test_an_input_may_have_any_byte_order():
    lstm = StackedLSTM(I, H)
    x = np.random.default_rng(0).standard_normal((T, B, I)).astype(np.float32)
    variables = lstm.init(jax.random.key(0), x)
    jax.tree.map(
        np.testing.assert_array_equal,
        lstm.apply(variables, x.astype(">f4")),
        lstm.apply(variables, x),
    )


def test_a_layer_is_a_tree():
    message = r"^params: expected a mapping of names under layer_0, got an array of sh"
    with pytest.raises(TypeError, match=message):
        StackedLSTM(I, H).apply({"params": {"layer_0": jnp.ones(3)}}, X)


def test_a_shape_is_no_array():
    lstm, shape = StackedLSTM(I, H), jax.ShapeDtypeStruct((T, B, I), jnp.float32)
    x = jnp.ones(shape.shape)
    variables = lstm.init(jax.random.key(0), x)
    with pytest.raises(TypeError, match=r"^input: .*, got a ShapeDtypeStruct\b"):
        lstm.apply(variables, shape)
    shapes = jax.eval_shape(lstm.init, jax.random.key(0), x)
    message = r"^params: expected arrays of floating-point numbers, got a ShapeDtypeSt"
    with pytest.raises(TypeError, match=message):
        lstm.apply(shapes, x)


@pytest.mark.parametrize("implementation", ["scan", "fused"])
def test_weights_are_real_numbers(implementation):
    lstm = StackedLSTM(I, H, implementation=implementation)
    x = jnp.ones((T, B, I))
    variables = lstm.init(jax.random.key(0), x)
    variables["params"]["layer_0"]["ii"]["kernel"] += 0j
    message = r"^params: .*, got an array .* complex64 as layer_0/ii/kernel\b"
    with pytest.raises(TypeError, match=message):
        lstm.apply(variables, x)


@pytest.mark.parametrize("implementation", ["scan", "fused"])
def test_weights_are_no_tensors_of_torch(implementation):
    torch = pytest.importorskip("torch", reason="its tensors are the weights")
    lstm = StackedLSTM(I, H, implementation=implementation)
    x = jnp.ones((T, B, I))
    variables = lstm.init(jax.random.key(0), x)
    variables["params"]["layer_0"]["ii"]["kernel"] = torch.zeros(I, H)
    message = r"^params: .*, got an array .* torch\.float32 as layer_0/ii/kernel\b"
    with pytest.raises(TypeError, match=message):
        lstm.apply(variables, x)
