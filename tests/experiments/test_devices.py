"""A batch spread over devices is the batch: shares, steps, and which devices."""

import itertools
import os
import platform
import subprocess
import sys

import compiled_loops
import flax.linen as nn
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given

from experiments import allocator, devices, training
from experiments.augmentation import Warp
from experiments.batches import Batch, DeviceSplit, Totals, num_batches, shares
from experiments.benchmark.sizes import NOTES
from experiments.data import digits
from experiments.data.dataset import Split
from experiments.dropout import masks_by_row
from experiments.errors import RunError
from experiments.evaluation import evaluate
from experiments.hyper_parameters import HyperParameters
from experiments.model_input import ModelInput
from experiments.train_state import create_state, optimizer
from experiments.training import Epochs
from flax_lstm import LSTMClassifier
from flax_lstm.native.cores import usable_cores

MODEL_INPUT = ModelInput(white=16)
KEY = jax.random.key(0)


@given(st.integers(1, 60), st.integers(1, 25), st.integers(1, 8))
def test_every_example_is_in_one_share_of_its_batch(examples, batch_size, count):
    order = np.random.default_rng(0).permutation(examples)
    cut = np.asarray(shares(order, batch_size, count))
    assert cut.shape[:2] == (num_batches(examples, batch_size), count)
    for number, batch in enumerate(cut):
        expected = order[number * batch_size : (number + 1) * batch_size]
        np.testing.assert_array_equal(batch[batch >= 0], expected)


def made_up_split(examples):
    rng = np.random.default_rng(0)
    images = rng.integers(0, MODEL_INPUT.white + 1, (examples, 8, 8), dtype=np.uint8)
    return Split(images, rng.integers(0, 10, examples, dtype=np.int32))


def after_an_epoch(count, batch_size, least_rows, monkeypatch, dropout=0.0):
    """State, training totals and test totals, on at most `count` devices."""
    monkeypatch.setattr(devices, "LEAST_ROWS_A_DEVICE", least_rows)
    monkeypatch.setattr(jax, "local_devices", lambda: jax.devices()[:count])
    mesh = devices.row_mesh(batch_size)
    split = made_up_split(50)
    model = LSTMClassifier(10, 8, 16, 2, batch_first=True, dropout=dropout)
    epochs = Epochs(DeviceSplit.of(split, mesh), batch_size, MODEL_INPUT, mesh)
    state = create_state(model, optimizer(1e-3), 0, (8, 8))
    state, progress = epochs.run(state, 1, epochs.start())
    tested = evaluate(model, state.params, epochs.split, MODEL_INPUT, mesh)
    return mesh.size, state, progress.means, tested.means()


@pytest.mark.parametrize("batch_size", [10, 12, 7])
def test_an_epoch_on_several_devices_is_that_of_one(batch_size, monkeypatch):
    """Also where rows do not divide evenly, or some devices get none at the end."""
    count = min(3, jax.device_count())
    size, state, *totals = after_an_epoch(count, batch_size, 2, monkeypatch)
    assert size == count
    size, expected, *expected_totals = after_an_epoch(1, batch_size, 2, monkeypatch)
    assert size == 1
    # Five to eight Adam steps of 1e-3 on float32 sums in another order.
    check = lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-5)  # noqa: E731
    jax.tree.map(check, state.params, expected.params)
    for got, wanted in zip(totals, expected_totals, strict=True):
        assert got == pytest.approx(wanted, abs=1e-5)
        assert got["examples"] == 50


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


def five_times(params):
    """So that answers and losses tell inputs apart, which at first they hardly do."""
    return jax.tree.map(lambda array: 5 * array, params)


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


def test_every_epoch_has_an_order_of_its_own():
    mesh = devices.row_mesh(10, 1)
    epochs = Epochs(DeviceSplit.of(made_up_split(50), mesh), 10, MODEL_INPUT, mesh)
    orders = [np.ravel(training._shuffled_shares(epochs, KEY, e)) for e in (1, 2)]
    for order in orders:
        np.testing.assert_array_equal(np.sort(order), np.arange(50))
        assert (order != np.arange(50)).any()
    assert (orders[0] != orders[1]).any()


@pytest.mark.parametrize(
    "options", [{"dropout": 0.5}, {"warp": Warp(rotation=20)}], ids=["masks", "warps"]
)
def test_every_step_draws_anew(options):
    one, two = losses_of_two_steps(**options)
    assert one != pytest.approx(two, rel=1e-3)
    one, two = losses_of_two_steps()
    assert one == two


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


def test_sums_of_other_devices_are_all_kept():
    totals = Totals(np.array([1.0, 2.0]), np.array([3, 4]), np.array([5, 6]))
    got = training.EpochProgress(3, totals, 1).for_devices(3)
    assert [sums.sum() for sums in got] == [3, 7, 11]
    assert len(got.loss) == 3


@pytest.mark.parametrize(("batch_size", "count"), [(100, 4), (49, 1), (50, 2), (1, 1)])
def test_every_device_has_at_least_25_rows(batch_size, count):
    assert devices.row_mesh(batch_size).size == min(count, jax.device_count())


def devices_in_a_process(script, arguments=(), **environment):
    """What `script` prints, in a process of its own with no setting but these."""
    settings = ("XLA", "JAX", "MALLOC_", "GLIBC_TUNABLES")
    clean = {k: v for k, v in os.environ.items() if not k.startswith(settings)}
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        env=clean | {"JAX_PLATFORMS": "cpu"} | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return int(done.stdout)


CLAIM = "from experiments.devices import claim_cores; claim_cores();"
COUNT = "import jax; print(jax.device_count())"


def test_each_core_becomes_a_device():
    assert devices_in_a_process(CLAIM + COUNT) == usable_cores()


def test_native_loops_which_use_all_cores_get_one_device(native):
    compiled = {"FLAX_LSTM_CACHE_DIR": compiled_loops.directory()}
    assert devices_in_a_process(CLAIM + COUNT, **compiled) == 1
    claim = CLAIM.replace("claim_cores()", "claim_cores(cell='gru')")
    assert devices_in_a_process(claim + COUNT, **compiled) == usable_cores()
    claim = CLAIM.replace("claim_cores()", "claim_cores(2)")
    assert devices_in_a_process(claim + COUNT, **compiled) == 2


@pytest.mark.parametrize(
    "environment",
    [
        {"XLA_FLAGS": "--xla_force_host_platform_device_count=3"},
        {"JAX_NUM_CPU_DEVICES": "3"},
    ],
    ids=lambda environment: next(iter(environment)),
)
def test_a_number_of_devices_chosen_outside_is_kept(environment):
    assert devices_in_a_process(CLAIM + COUNT, **environment) == 3


def test_a_backend_that_runs_is_left_alone():
    assert devices_in_a_process("import jax; jax.devices();" + CLAIM + COUNT) == 1


def test_importing_the_library_sets_nothing():
    script = (
        "import jax; before = dict(jax.config.values); import flax_lstm;"
        "print(int(before == dict(jax.config.values)))"
    )
    assert devices_in_a_process(script) == 1


def test_dropout_masks_belong_to_the_examples(monkeypatch):
    """Another number of devices drops the same elements; and drops some at all."""
    count = min(3, jax.device_count())
    results = [
        after_an_epoch(size, 10, 2, monkeypatch, dropout=dropout)
        for size, dropout in ((count, 0.5), (1, 0.5), (1, 0.0))
    ]
    losses = [totals["loss"] for _, _, totals, _ in results]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    assert losses[1] != pytest.approx(losses[2], rel=1e-4)


def test_rows_of_a_batch_get_masks_of_their_own():
    x = jnp.ones((3, 4, 5))
    dropout = nn.Dropout(0.5, deterministic=False)

    def masks(rows):
        with masks_by_row(jnp.asarray(rows)):
            return dropout.apply(
                {}, x[:, : len(rows)], deterministic=False, rngs={"dropout": KEY}
            )

    whole = masks([0, 1, 2, 3])
    assert set(np.unique(whole)) == {0, 2}
    for a, b in itertools.combinations(range(4), 2):
        assert (whole[:, a] != whole[:, b]).any()
    np.testing.assert_array_equal(masks([2, 3]), whole[:, 2:])


@pytest.mark.parametrize("chunk_seconds", [0.0, 1e9])
def test_where_an_epoch_is_cut_into_chunks_changes_nothing(chunk_seconds, monkeypatch):
    _, expected, *expected_totals = after_an_epoch(2, 10, 2, monkeypatch)
    monkeypatch.setattr(training, "_CHUNK_SECONDS", chunk_seconds)
    _, state, *totals = after_an_epoch(2, 10, 2, monkeypatch)
    jax.tree.map(np.testing.assert_array_equal, state.params, expected.params)
    assert totals == expected_totals


def test_eight_devices_follow_one(monkeypatch):
    """The loss of each of the first 50 steps on the digits, by few units."""
    if jax.device_count() < 8:
        pytest.skip("needs 8 devices; tests/conftest.py makes them on CPU")
    monkeypatch.setattr(training, "_CHUNK_SECONDS", 0.0)
    curves = []
    for count in (1, 8):
        mesh = devices.row_mesh(100, count)
        data = digits.load()
        model = LSTMClassifier(10, 8, 32, 2, batch_first=True, dropout=0.1)
        epochs = Epochs(DeviceSplit.of(data.train, mesh), 100, MODEL_INPUT, mesh)
        state = create_state(model, optimizer(1e-3), 0, (8, 8))
        losses = []
        epoch, progress = 1, epochs.start()
        while len(losses) < 50:
            before = progress.totals.loss.sum()
            state, progress = epochs.run(state, epoch, progress, lambda steps: 1)
            losses.append(progress.totals.loss.sum() - before)
            if progress.steps == epochs.steps:
                epoch, progress = epoch + 1, epochs.start()
        curves.append(losses)
    np.testing.assert_allclose(*curves, rtol=1e-4)


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


def test_more_devices_than_there_are():
    with pytest.raises(RunError, match="--num_devices: expected at most"):
        devices.row_mesh(100, jax.device_count() + 1)


def test_freed_memory_is_kept_unless_told_otherwise_outside():
    script = "from experiments.allocator import keep_freed_memory as keep;"
    script += "print(int(keep()))"
    is_glibc = platform.libc_ver()[0] == "glibc"
    assert devices_in_a_process(script) == is_glibc
    assert devices_in_a_process(script, MALLOC_ARENA_MAX="2") == 0


_ARENAS = """
import ctypes, os, sys, tempfile, threading
from experiments.allocator import keep_if_large
keep_if_large(int(sys.argv[1]))
libc = ctypes.CDLL(None)
libc.malloc.restype = libc.fdopen.restype = ctypes.c_void_p
threads = [threading.Thread(target=libc.malloc, args=(5000,)) for _ in range(4)]
for thread in threads: thread.start()
for thread in threads: thread.join()
with tempfile.TemporaryFile() as file:
    stream = ctypes.c_void_p(libc.fdopen(os.dup(file.fileno()), b"w"))
    libc.malloc_info(0, stream)
    libc.fclose(stream)
    file.seek(0)
    print(file.read().count(b"<heap nr="))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc's malloc")
def test_memory_is_kept_in_one_arena_if_it_is_much():
    little, much = (allocator.step_bytes(32, steps, 128, 2) for steps in (28, 784))
    assert devices_in_a_process(_ARENAS, arguments=[str(little)]) > 1
    assert devices_in_a_process(_ARENAS, arguments=[str(much)]) == 1


def test_the_notes_run_holds_enough_for_it():
    assert HyperParameters().step_bytes == NOTES.step_bytes
    assert allocator.step_bytes(100, 28, 128, 2) == NOTES.step_bytes
    assert allocator.LARGE_BYTES < NOTES.step_bytes < 2 * allocator.LARGE_BYTES
