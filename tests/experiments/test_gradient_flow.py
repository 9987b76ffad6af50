"""The measured gradients are the true ones, and the command leaves its files."""

import json
import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from commands import command

from experiments.gradient_flow import measure, recall
from experiments.gradient_flow.networks import HIDDEN_SIZE, FirstWeights
from experiments.gradient_flow.recall import SYMBOLS, examples
from experiments.gradient_flow.report import table
from flax_lstm import LSTMClassifier, StackedGRU, StackedLSTM, StackedRNN

T, I, H = 6, 2, 3  # noqa: E741
ROOT = pathlib.Path(__file__).parents[2]


def inputs(count=2):
    return jnp.asarray(np.random.default_rng(0).random((count, T, I)), jnp.float32)


def params_of(module):
    return module.init(jax.random.key(0), inputs())["params"]


@pytest.mark.parametrize("scale", [0.5, 1.0, 2.0])
def test_a_linear_rnn_scales_the_gradient_by_a_power(scale):
    """ReLU of positive numbers, W_h = scale · 1: ∂ h_T / ∂ x_t = scale^(T-t) · W_i."""
    stack = StackedRNN(I, H, nonlinearity="relu", batch_first=True, bias=False)
    kernel = np.arange(1.0, 1 + I * H).reshape(I, H)
    params = {"layer_0": {"i": {"kernel": kernel}, "h": {"kernel": scale * jnp.eye(H)}}}
    norms = measure.of_last_output(stack, params, inputs())
    powers = scale ** np.arange(T - 1, -1, -1.0)
    # Powers of two times integers: nothing is rounded but the root.
    np.testing.assert_allclose(norms, powers * np.linalg.norm(kernel), rtol=1e-14)


@pytest.mark.parametrize("kind", [StackedGRU, StackedLSTM])
def test_norms_are_those_of_finite_differences(kind):
    stack = kind(I, H, batch_first=True)
    params, x = params_of(stack), inputs(1)
    norms = measure.of_last_output(stack, params, x)
    with jax.enable_x64(True):
        params = jax.tree.map(lambda p: p.astype(jnp.float64), params)
        run = jax.jit(lambda x: stack.apply({"params": params}, x)[0][:, -1])
        step = 1e-6
        shifts = step * np.eye(T * I).reshape(T * I, T, I)
        base = np.asarray(x[0], np.float64)
        columns = (run(base + shifts) - run(base - shifts)) / (2 * step)
        expected = np.linalg.norm(np.reshape(columns, (T, I * H)), axis=1)
    # Central differences in float64: step² from the third derivative, and 1e-16/step.
    np.testing.assert_allclose(norms, expected, rtol=1e-7)


def test_logits_of_the_last_output_have_the_gradient_of_the_head_behind_it():
    model = LSTMClassifier(num_classes=1, input_size=I, hidden_size=1, num_layers=1)
    params, x = params_of(model), inputs()
    stack = StackedLSTM(I, 1, batch_first=True)
    behind = measure.of_last_output(stack, params["lstm"], x)
    head = abs(float(params["head"]["kernel"][0, 0]))
    # Both in float64; the sums are in another order.
    np.testing.assert_allclose(
        measure.of_logits(model, params, x), head * behind, rtol=1e-12
    )


@pytest.fixture
def layer():
    """A layer of two gates, as a stack of HIDDEN_SIZE has it."""
    square = np.ones((HIDDEN_SIZE, HIDDEN_SIZE), np.float32)
    bias = np.ones(HIDDEN_SIZE, np.float32)
    return {
        "ii": {"kernel": square},
        "hi": {"kernel": square, "bias": bias},
        "if": {"kernel": square},
        "hf": {"kernel": square, "bias": bias},
    }


def test_gain_sets_every_singular_value_of_the_recurrent_weights(layer):
    changed = FirstWeights(gain=1.5).of({"layer_0": layer}, seed=0)["layer_0"]
    for name in ("hi", "hf"):
        values = np.linalg.svd(changed[name]["kernel"], compute_uv=False)
        # An orthogonal matrix in float32.
        np.testing.assert_allclose(values, 1.5, rtol=1e-5)
        assert changed[name]["bias"] is layer[name]["bias"]
    assert (changed["hi"]["kernel"] != changed["hf"]["kernel"]).any()
    assert changed["ii"] is layer["ii"]
    assert changed["if"] is layer["if"]


def test_an_offset_opens_one_gate(layer):
    opened = FirstWeights(opened="hf", offset=4.0).of({"layer_0": layer}, seed=0)
    np.testing.assert_array_equal(opened["layer_0"]["hf"]["bias"], 5)
    assert opened["layer_0"]["hf"]["kernel"] is layer["hf"]["kernel"]
    assert all(opened["layer_0"][name] is layer[name] for name in ("ii", "hi", "if"))


def test_only_the_first_step_tells_the_label():
    sequences, labels = examples(jax.random.key(0), 500, 20)
    np.testing.assert_array_equal(sequences[:, 0], np.eye(SYMBOLS)[labels])
    rest = np.asarray(sequences[:, 1:])
    assert abs(rest.std() - 0.3) < 0.01
    means = [rest[labels == label].mean() for label in range(SYMBOLS)]
    # 0.3 / √(125 · 19 · 4) = 0.003 is the deviation of such a mean.
    assert np.abs(means).max() < 0.015


def test_every_update_and_the_test_have_examples_of_their_own(monkeypatch):
    sums = []

    def noted(*arguments):
        sequences, labels = examples(*arguments)
        jax.debug.callback(lambda value: sums.append(float(value)), sequences.sum())
        return sequences, labels

    monkeypatch.setattr(recall, "examples", noted)
    model = LSTMClassifier(SYMBOLS, SYMBOLS, H, num_layers=1)
    params = model.init(jax.random.key(0), jnp.zeros((1, 1, SYMBOLS)))["params"]
    recall.train(model, params, steps=3, updates=4, seed=0)
    jax.effects_barrier()
    assert len(sums) == len(set(sums)) == 5


@pytest.mark.parametrize(
    "names",
    [
        pytest.param(["one"], id="once", marks=pytest.mark.slow),
        pytest.param(["one", "two"], id="twice", marks=pytest.mark.long),
    ],
)
def test_the_command_writes_numbers_pictures_and_the_same_again(names, tmp_path):
    outputs = [tmp_path / name for name in names]
    # It computes more than it compiles: with a user's code it takes half the time.
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    for output in outputs:
        flags = ("--quick", f"--output={output}")
        done = command("gradient_flow", *flags, env=environment)
        assert done.returncode == 0, done.stderr
    first, *again = [output.with_suffix(".json").read_text() for output in outputs]
    assert again == [first] * (len(names) - 1)
    results = json.loads(first)
    assert table(results) in done.stdout
    for network in [*results["training"].values(), *results["pooling"].values()]:
        assert len(network["before"]) == len(network["after"]) == results["steps"]
    pictures = sorted(path.name for path in tmp_path.glob("one*.png"))
    assert pictures == [
        f"one-{n}.png" for n in ("first-weights", "pooling", "training")
    ]


def test_the_text_has_the_tables_of_the_results():
    text = (ROOT / "experiments" / "GRADIENT_FLOW.md").read_text()
    recorded = ROOT / "experiments" / "results" / "gradient-flow.json"
    for part in table(json.loads(recorded.read_text())).split("\n\n"):
        assert part in text
