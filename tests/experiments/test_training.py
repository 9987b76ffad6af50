"""Steps and epochs: what they count, draw and update, and how they are cut."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from made_up_epochs import MODEL_INPUT, after_an_epoch, made_up_split

from experiments import devices, run, training
from experiments.augmentation import Warp
from experiments.batches import Batch, DeviceSplit
from experiments.data.dataset import Split
from experiments.errors import RunError
from experiments.evaluation import evaluate
from experiments.stopping import StopRequest
from experiments.train_state import create_state, optimizer
from experiments.training import Epochs
from flax_lstm import LSTMClassifier

KEY = jax.random.key(0)


def test_a_step_counts_real_rows_only_and_moves_summed_biases_twice():
    model = LSTMClassifier(10, 8, 4, 1)
    weights = jnp.array([1.0, 1.0, 1.0, 0.0])
    images = jax.random.uniform(KEY, (4, 8, 8))
    padded = Batch(images, jnp.arange(4), weights, jnp.arange(4))
    real = jax.tree.map(lambda array: array[:3], padded)
    train_step = jax.jit(training.train_step)
    plain = create_state(model, optax.sgd(1.0), 0, (8, 8))
    got, totals = train_step(plain, padded)
    expected, _ = train_step(plain, real)
    check = lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-6)  # noqa: E731
    jax.tree.map(check, got.params, expected.params)
    assert int(totals.examples) == 3
    # Adam's first step is the step size; torch's two biases make two of it.
    adam = create_state(model, optimizer(1e-3), 0, (8, 8))
    after, _ = train_step(adam, real)
    moved = jax.tree.map(lambda a, b: abs(a - b).max(), after.params, adam.params)
    assert moved["lstm"]["layer_0"]["hi"]["bias"] == pytest.approx(2e-3, rel=1e-2)
    assert moved["lstm"]["layer_0"]["hi"]["kernel"] <= 1e-3 * 1.01
    assert moved["head"]["bias"] == pytest.approx(1e-3, rel=1e-2)


def test_a_step_clips_gradients_before_adam():
    grads = {"head": {"bias": jnp.array([30.0, 40.0])}}
    clipped = optimizer(1e-3, clip_norm=1.0)
    _, state = clipped.update(grads, clipped.init(grads), grads)
    (mean,) = [s.mu for s in jax.tree.leaves(state, is_leaf=is_adam) if is_adam(s)]
    np.testing.assert_allclose(mean["head"]["bias"], [0.06, 0.08], rtol=1e-5)


def is_adam(state):
    return isinstance(state, optax.ScaleByAdamState)


def losses_of_two_steps(dropout=0.0, warp=None):
    """On the same examples in the same order, by weights that stay as they are."""
    model = LSTMClassifier(10, 8, 16, 2, dropout=dropout)
    mesh = devices.row_mesh(10, 1)
    split = DeviceSplit.of(made_up_split(50), mesh)
    epochs = Epochs(split, 50, MODEL_INPUT, mesh, warp)  # An epoch is one step.
    state = create_state(model, optax.set_to_zero(), 0, (8, 8))
    state = state.replace(params=five_times(state.params))
    losses = []
    for _ in range(2):
        state, progress = epochs.run(state, 1, epochs.start())
        losses.append(progress.means["loss"])
    return losses


def five_times(params):
    """So that answers and losses tell inputs apart, which at first they hardly do."""
    return jax.tree.map(lambda array: 5 * array, params)


@pytest.mark.parametrize(
    "options", [{"dropout": 0.5}, {"warp": Warp(rotation=20)}], ids=["masks", "warps"]
)
def test_every_step_draws_anew(options):
    one, two = losses_of_two_steps(**options)
    assert one != pytest.approx(two, rel=1e-3)
    one, two = losses_of_two_steps()
    assert one == two


def test_every_epoch_has_an_order_of_its_own():
    mesh = devices.row_mesh(10, 1)
    epochs = Epochs(DeviceSplit.of(made_up_split(50), mesh), 10, MODEL_INPUT, mesh)
    orders = [np.ravel(training._shuffled_shares(epochs, KEY, e)) for e in (1, 2)]
    for order in orders:
        np.testing.assert_array_equal(np.sort(order), np.arange(50))
        assert (order != np.arange(50)).any()
    assert (orders[0] != orders[1]).any()


@pytest.mark.parametrize("count", [1, 3])
def test_every_example_of_several_batches_is_scored_once(count):
    """Of three batches, the last with padding, whose answer would be a right one."""
    mesh = devices.row_mesh(100, min(count, jax.device_count()))
    model = LSTMClassifier(10, 8, 4, 1)
    images = made_up_split(1203).images
    inputs = images / np.float32(MODEL_INPUT.white)
    variables = five_times(model.init(KEY, inputs[:1]))
    logits = model.apply(variables, inputs)
    labels = np.array(logits.argmax(-1), np.int32)
    labels[1::2] = (labels[1::2] + 1) % 10
    split = DeviceSplit.of(Split(images, labels), mesh)
    params = devices.replicated(variables["params"], mesh)
    got = evaluate(model, params, split, MODEL_INPUT, mesh)
    assert (int(got.correct), int(got.examples)) == (602, 1203)


@pytest.mark.parametrize("chunk_seconds", [0.0, 1e9])
def test_where_an_epoch_is_cut_into_chunks_changes_nothing(chunk_seconds, monkeypatch):
    _, expected, *expected_totals = after_an_epoch(2, 10, 2, monkeypatch)
    monkeypatch.setattr(training, "_CHUNK_SECONDS", chunk_seconds)
    _, state, *totals = after_an_epoch(2, 10, 2, monkeypatch)
    jax.tree.map(np.testing.assert_array_equal, state.params, expected.params)
    assert totals == expected_totals


def test_an_epoch_shorter_than_a_chunk_is_one_program(monkeypatch):
    """From the second on: the first finds out how many steps that is."""
    monkeypatch.setattr(training, "_CHUNK_SECONDS", 60.0)
    mesh = devices.row_mesh(10, 1)
    model = LSTMClassifier(10, 8, 16, batch_first=True)
    epochs = Epochs(DeviceSplit.of(made_up_split(70), mesh), 10, MODEL_INPUT, mesh)
    state = create_state(model, optimizer(1e-3), 0, (8, 8))
    progress, chunks = None, []
    for epoch in (1, 2):
        state, progress = epochs.run(
            state,
            epoch,
            epochs.start(progress),
            lambda steps: chunks.append(steps) or 0,
        )
    assert chunks == [1, 2, 4, 7]


def test_the_rest_of_an_epoch_does_not_set_the_pace(monkeypatch):
    """As its steps share what a program costs with few others."""
    now = 0.0

    def seconds():
        nonlocal now
        now += 1.0  # Between any two calls, and so for every chunk.
        return now

    monkeypatch.setattr(training.time, "perf_counter", seconds)
    monkeypatch.setattr(training, "_CHUNK_SECONDS", 4.0)
    mesh = devices.row_mesh(10, 1)
    model = LSTMClassifier(10, 8, 16, batch_first=True)
    epochs = Epochs(DeviceSplit.of(made_up_split(80), mesh), 10, MODEL_INPUT, mesh)
    state = create_state(model, optimizer(1e-3), 0, (8, 8))
    chunks = []
    _, progress = epochs.run(
        state, 1, epochs.start(), lambda steps: chunks.append(steps) or 0
    )
    assert chunks == [1, 2, 4, 1]
    assert progress.next_chunk == 8


def test_the_step_whose_loss_is_not_finite_is_counted_over_all_epochs(tmp_path):
    """The sixth, in an epoch that goes on behind its second step."""
    mesh = devices.row_mesh(10, 1)
    epochs = Epochs(DeviceSplit.of(made_up_split(30), mesh), 10, MODEL_INPUT, mesh)
    state = create_state(LSTMClassifier(10, 8, 4, 1), optimizer(1e-3), 0, (8, 8))
    lost = jax.tree.map(lambda p: p * jnp.nan, state.params)
    state = state.replace(params=lost, step=5)
    progress = dataclasses.replace(epochs.start(), steps=2)
    with pytest.raises(RunError, match="not finite in epoch 2, step 6;"):
        run._run_epoch(state, epochs, 2, progress, StopRequest(), str(tmp_path))
