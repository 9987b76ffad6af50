"""Training with optax follows torch.optim's trajectory from the same weights."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict
from oracle import torch
from torch_classifier import TorchClassifier

from flax_lstm import (
    GRUClassifier,
    LSTMClassifier,
    RNNClassifier,
    StackedLSTM,
    classifier_params_from_torch,
    clip_by_torch_global_norm,
    scale_by_torch_biases,
)

T, B, I, H, CLASSES = 5, 4, 3, 6, 3  # noqa: E741
STEPS, RATE = 50, 1e-3

# Fifty steps of 1e-3 move a weight by up to 0.05, and a bias that is trained at
# half its pace is off by 0.01. Rounding stays far below: Adam divides a gradient by
# its own size, so float32's 1e-7 comes back as 1e-7 of a step, except where a
# gradient is near Adam's epsilon of 1e-8.
TOLERANCE = 1e-5

CLASSIFIERS = {"lstm": LSTMClassifier, "gru": GRUClassifier, "rnn_tanh": RNNClassifier}


def batches(dtype):
    rng = np.random.default_rng(0)
    for _ in range(STEPS):
        yield rng.standard_normal((B, T, I)).astype(dtype), rng.integers(0, CLASSES, B)


def train_torch(model, optimizer, dtype):
    losses = []
    for x, y in batches(dtype):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(
            model(torch.from_numpy(x)), torch.from_numpy(y)
        )
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return np.array(losses)


def train_flax(kind, params, tx, dtype, **options):
    model = CLASSIFIERS[kind](
        num_classes=CLASSES,
        input_size=I,
        hidden_size=H,
        param_dtype=dtype,
        **{"num_layers": 1, **options},
    )

    @jax.jit
    def step(params, state, x, y):
        def loss(params):
            logits = model.apply({"params": params}, x)
            return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

        value, gradients = jax.value_and_grad(loss)(params)
        updates, state = tx.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, value

    state, losses = tx.init(params), []
    for x, y in batches(dtype):
        params, state, value = step(params, state, x, y)
        losses.append(value.item())
    return np.array(losses), params


def deviations(make_torch_optimizer, tx, dtype="float64", kind="lstm", **options):
    """The largest differences of the losses and of the weights, after all steps."""
    torch.manual_seed(0)
    model = TorchClassifier(kind, (I, H), **options).to(getattr(torch, dtype))
    with jax.enable_x64(dtype == "float64"):
        start = classifier_params_from_torch(model.state_dict())
        losses, params = train_flax(kind, start, tx, dtype, **options)
        expected_losses = train_torch(
            model, make_torch_optimizer(model.parameters()), dtype
        )
        expected = classifier_params_from_torch(model.state_dict())
        of_weights = jax.tree.map(
            lambda a, b: float(abs(a - b).max()), params, expected
        )
        moved = jax.tree.map(lambda a, b: float(abs(a - b).max()), start, expected)
    # Nothing is compared that did not train; but of the last layer's reverse direction
    # one step from zeros is all that the last output shows, so there not all trains.
    moved[kind.partition("_")[0]].pop("layer_1_reverse", None)
    assert min(jax.tree.leaves(moved)) > 100 * TOLERANCE
    return abs(losses - expected_losses).max(), max(jax.tree.leaves(of_weights))


def torch_adam(parameters):
    return torch.optim.Adam(parameters, lr=RATE)


def torch_adamw(parameters):
    return torch.optim.AdamW(parameters, lr=RATE, weight_decay=0.1)


def torch_sgd(parameters, **options):
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9, **options)


# A norm that the gradients of most steps exceed, and those of some do not.
MAX_NORM = 0.3


def clipping(make_optimizer):
    """A function that makes the same optimizer, which clips before every step."""

    def make(parameters):
        parameters = list(parameters)
        optimizer = make_optimizer(parameters)

        def clip(*_):
            torch.nn.utils.clip_grad_norm_(parameters, MAX_NORM)

        optimizer.register_step_pre_hook(clip)
        return optimizer

    return make


SGD = optax.sgd(0.1, momentum=0.9)
BEFORE_DECAY = optax.chain(
    optax.scale_by_adam(),
    scale_by_torch_biases(),
    optax.add_decayed_weights(0.1),
    optax.scale_by_learning_rate(RATE),
)

FOLLOWED = {
    "adam": (torch_adam, optax.chain(optax.adam(RATE), scale_by_torch_biases())),
    "adamw": (torch_adamw, BEFORE_DECAY),
    "sgd": (torch_sgd, optax.chain(SGD, scale_by_torch_biases())),
    "sgd_with_decay": (
        partial(torch_sgd, weight_decay=0.1),
        optax.chain(scale_by_torch_biases(), optax.add_decayed_weights(0.1), SGD),
    ),
    "clipped_nesterov_with_decay": (
        clipping(partial(torch_sgd, weight_decay=0.1, nesterov=True)),
        optax.chain(
            clip_by_torch_global_norm(MAX_NORM),
            scale_by_torch_biases(),
            optax.add_decayed_weights(0.1),
            optax.sgd(0.1, momentum=0.9, nesterov=True),
        ),
    ),
    "clipped_adam": (
        clipping(torch_adam),
        optax.chain(
            clip_by_torch_global_norm(MAX_NORM),
            optax.adam(RATE),
            scale_by_torch_biases(),
        ),
    ),
    "clipped_sgd": (
        clipping(torch_sgd),
        optax.chain(clip_by_torch_global_norm(MAX_NORM), SGD, scale_by_torch_biases()),
    ),
}


@pytest.mark.parametrize(("of_torch", "tx"), FOLLOWED.values(), ids=FOLLOWED)
def test_losses_and_weights_follow_torchs(of_torch, tx):
    of_losses, of_weights = deviations(of_torch, tx)
    assert of_losses < TOLERANCE
    assert of_weights < TOLERANCE


def test_losses_and_weights_follow_torchs_in_float32():
    assert max(deviations(*FOLLOWED["adam"], dtype="float32")) < TOLERANCE


@pytest.mark.parametrize("kind", ["gru", "rnn_tanh"])
@pytest.mark.parametrize("name", ["adam", "clipped_sgd"])
def test_losses_and_weights_of_gru_and_rnn_follow_torchs(kind, name):
    assert max(deviations(*FOLLOWED[name], kind=kind)) < TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("kind", CLASSIFIERS)
def test_losses_and_weights_of_two_layers_in_two_directions_follow_torchs(kind):
    options = {"kind": kind, "num_layers": 2, "bidirectional": True}
    assert max(deviations(*FOLLOWED["adam"], **options)) < TOLERANCE


NOT_FOLLOWED = {
    "no_transformation": (torch_adam, optax.adam(RATE)),
    "after_the_decay": (
        torch_adamw,
        optax.chain(optax.adamw(RATE, weight_decay=0.1), scale_by_torch_biases()),
    ),
    "one_bias_in_the_norm": (
        clipping(torch_sgd),
        optax.chain(optax.clip_by_global_norm(MAX_NORM), SGD, scale_by_torch_biases()),
    ),
    "not_clipped": (clipping(torch_sgd), FOLLOWED["sgd"][1]),
    "sgd_with_decay_before": (
        FOLLOWED["sgd_with_decay"][0],
        optax.chain(optax.add_decayed_weights(0.1), SGD, scale_by_torch_biases()),
    ),
}


@pytest.mark.parametrize(("of_torch", "tx"), NOT_FOLLOWED.values(), ids=NOT_FOLLOWED)
def test_what_leaves_torchs_trajectory(of_torch, tx):
    """What the tests above would show were the transformation absent or misplaced."""
    _, of_weights = deviations(of_torch, tx)
    assert of_weights > TOLERANCE


@pytest.mark.parametrize("kind", ["gru", "rnn_tanh"])
def test_the_other_cells_leave_it_without_the_transformation(kind):
    _, of_weights = deviations(*NOT_FOLLOWED["no_transformation"], kind=kind)
    assert of_weights > TOLERANCE


DOUBLED = {
    "lstm": ({"proj_size": 2}, ("hi", "hf", "hg", "ho")),
    "gru": ({}, ("ir", "iz")),
    "rnn_tanh": ({}, ("i",)),
}


@pytest.mark.parametrize(
    ("kind", "options", "modules"),
    [(kind, *row) for kind, row in DOUBLED.items()],
    ids=DOUBLED,
)
def test_only_biases_that_are_a_sum_are_doubled(kind, options, modules):
    model = CLASSIFIERS[kind](
        input_size=I, hidden_size=H, bidirectional=True, pooling="attention", **options
    )
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((B, T, I)))
    ones = jax.tree.map(lambda s: jnp.ones(s.shape), shapes["params"])
    updates, _ = scale_by_torch_biases().update(ones, optax.EmptyState())
    doubled = {
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, leaf in jax.tree_util.tree_leaves_with_path(updates)
        if (leaf == 2).all()
    }
    assert doubled == {
        f"{model.cell}/layer_{layer}{direction}/{module}/bias"
        for layer in range(2)
        for direction in ("", "_reverse")
        for module in modules
    }


def test_tiny_gradients_are_clipped_as_in_torch():
    """What torch adds to the norm is as large as these are."""
    gradient = np.float32([3e-6, -4e-6])
    parameter = torch.nn.Parameter(torch.zeros(2))
    parameter.grad = torch.from_numpy(gradient.copy())
    torch.nn.utils.clip_grad_norm_([parameter], 1e-6)
    tx = clip_by_torch_global_norm(1e-6)
    clipped, _ = tx.update({"w": jnp.asarray(gradient)}, optax.EmptyState())
    np.testing.assert_allclose(clipped["w"], parameter.grad, rtol=1e-6)


@pytest.mark.parametrize("sep", ["/", ".", None])
@pytest.mark.parametrize(
    "transformation", [scale_by_torch_biases(), clip_by_torch_global_norm(1.0)]
)
def test_a_flat_tree_is_treated_as_the_nested_one(transformation, sep):
    variables = StackedLSTM(I, H).init(jax.random.key(0), jnp.zeros((T, B, I)))
    nested = jax.tree.map(jnp.ones_like, variables["params"])
    state = optax.EmptyState()
    expected, _ = transformation.update(nested, state)
    got, _ = transformation.update(flatten_dict(nested, sep=sep), state)
    expected = flatten_dict(expected, sep=sep)
    jax.tree.map(np.testing.assert_array_equal, got, expected)


def test_biases_in_a_box_are_doubled_too():
    boxed = nn.with_partitioning(nn.initializers.ones, ("units",))
    params = StackedLSTM(I, H, bias_init=boxed).init(
        jax.random.key(0), jnp.zeros((T, B, I))
    )["params"]
    updates, _ = scale_by_torch_biases().update(
        jax.tree.map(jnp.ones_like, params), optax.EmptyState()
    )
    layer = updates["layer_0"]
    assert isinstance(layer["hi"]["bias"], nn.Partitioned)
    np.testing.assert_array_equal(layer["hi"]["bias"].value, 2 * np.ones(H))
    np.testing.assert_array_equal(layer["hi"]["kernel"], np.ones((H, H)))


@jax.tree_util.register_pytree_node_class
class Box:
    """Whose tree gives what is in it no name."""

    def __init__(self, value):
        self.value = value

    def tree_flatten(self):
        return (self.value,), None

    @classmethod
    def tree_unflatten(cls, _, children):
        return cls(*children)


def test_biases_in_a_box_without_names_are_doubled_too():
    params = {"layer_0": {"hi": {"bias": Box(jnp.ones(H)), "kernel": jnp.ones(H)}}}
    updates, _ = scale_by_torch_biases().update(params, optax.EmptyState())
    layer = updates["layer_0"]["hi"]
    np.testing.assert_array_equal(layer["bias"].value, 2 * np.ones(H))
    np.testing.assert_array_equal(layer["kernel"], np.ones(H))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_clipping_keeps_dtypes_and_boxes_and_counts_in_float32(dtype):
    """A sum of 2000 squares of 1 would end at 256 in bfloat16."""
    boxed = nn.Partitioned(jnp.ones(1000, dtype), ("units",))
    gradients = {"hi": {"bias": boxed, "kernel": jnp.ones(2000, dtype)}}
    tx = clip_by_torch_global_norm(4.0)
    clipped, _ = jax.jit(tx.update)(gradients, tx.init(gradients))
    assert jax.tree.structure(clipped) == jax.tree.structure(gradients)
    # 4 / √(2·1000 + 2000), rounded to the dtype.
    for leaf in jax.tree.leaves(clipped):
        assert leaf.dtype == dtype
        np.testing.assert_allclose(leaf.astype("float32"), 4000**-0.5 * 4, rtol=2**-8)


def test_small_gradients_are_not_clipped():
    gradients = {"hi": {"bias": jnp.full(3, 0.1)}, "head": {"bias": jnp.full(2, -0.2)}}
    tx = clip_by_torch_global_norm(1.0)
    clipped, _ = tx.update(gradients, tx.init(gradients))
    jax.tree.map(np.testing.assert_array_equal, clipped, gradients)


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf])
def test_what_is_not_finite_spreads_as_in_torch(bad):
    parameter = torch.nn.Parameter(torch.zeros(3))
    parameter.grad = torch.tensor([1.0, bad, -2.0])
    torch.nn.utils.clip_grad_norm_([parameter], 1.0)
    tx = clip_by_torch_global_norm(1.0)
    clipped, _ = tx.update({"w": jnp.array([1.0, bad, -2.0])}, tx.init({}))
    np.testing.assert_array_equal(clipped["w"], parameter.grad)


@pytest.mark.parametrize(
    ("max_norm", "error"),
    [
        *((value, ValueError) for value in (0, -1.0, float("nan"))),
        *((value, TypeError) for value in ("1", None, True)),
    ],
)
def test_a_largest_norm_is_a_positive_number(max_norm, error):
    with pytest.raises(error, match=r"^max_norm: expected a positive number, got"):
        clip_by_torch_global_norm(max_norm)


def test_a_largest_norm_may_be_a_hyper_parameter():
    tx = optax.inject_hyperparams(clip_by_torch_global_norm)(max_norm=0.5)
    gradients = {"w": jnp.array([3.0, 4.0])}
    clipped, _ = jax.jit(tx.update)(gradients, tx.init(gradients))
    np.testing.assert_allclose(clipped["w"], [0.3, 0.4], rtol=1e-6)


def test_clipping_of_complex_gradients_keeps_their_direction():
    """As of layers beside an LSTM."""
    gradients = {"a": np.array([3 + 4j, 0, 1j], np.complex64), "b": np.float32([2, 1])}
    parameters = [torch.nn.Parameter(torch.zeros(g.shape)) for g in gradients.values()]
    parameters[0] = torch.nn.Parameter(torch.zeros(3, dtype=torch.complex64))
    for parameter, gradient in zip(parameters, gradients.values(), strict=True):
        parameter.grad = torch.from_numpy(gradient.copy())
    torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    tx = clip_by_torch_global_norm(1.0)
    clipped, _ = tx.update(gradients, tx.init(gradients))
    for parameter, (name, gradient) in zip(parameters, clipped.items(), strict=True):
        assert gradient.dtype == gradients[name].dtype
        np.testing.assert_allclose(gradient, parameter.grad, rtol=1e-6)


@pytest.mark.parametrize(
    "transformation", [scale_by_torch_biases(), clip_by_torch_global_norm(1.0)]
)
def test_a_tree_without_names_is_refused(transformation):
    params = {"hi": {"bias": jnp.ones(H)}}
    tx = optax.flatten(optax.chain(optax.sgd(1.0), transformation))
    message = (
        r"^updates: expected a tree with the parameters' names, .* optax\.flatten$"
    )
    with pytest.raises(ValueError, match=message):
        tx.update(params, tx.init(params))
    transformation.update({}, transformation.init({}))
