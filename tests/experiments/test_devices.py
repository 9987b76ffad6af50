"""A batch spread over devices is the batch: shares, steps, and which devices."""

import os
import subprocess
import sys

import hypothesis.strategies as st
import jax
import numpy as np
import pytest
from hypothesis import given

from experiments import devices
from experiments.batches import DeviceSplit, num_batches, shares
from experiments.data.dataset import Split
from experiments.evaluation import evaluate
from experiments.training import Epochs, create_state
from flax_lstm import LSTMClassifier

WHITE = 16


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
    images = rng.integers(0, WHITE + 1, (examples, 8, 8), dtype=np.uint8)
    return Split(images, rng.integers(0, 10, examples, dtype=np.int32))


def after_an_epoch(count, batch_size, least_rows, monkeypatch):
    """State, training totals and test totals, on at most `count` devices."""
    monkeypatch.setattr(devices, "_LEAST_ROWS_A_DEVICE", least_rows)
    monkeypatch.setattr(jax, "local_devices", lambda: jax.devices()[:count])
    mesh = devices.row_mesh(batch_size)
    split = made_up_split(50)
    model = LSTMClassifier(10, 8, 16)
    epochs = Epochs(DeviceSplit.of(split, mesh), batch_size, WHITE, mesh)
    state = create_state(model, 1e-3, 0, (8, 8))
    state, totals = epochs.run(state, 1, lambda steps: None)
    tested = evaluate(model, state.params, epochs.split, WHITE, mesh)
    return mesh.size, state, totals.means(), tested.means()


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


@pytest.mark.parametrize(("batch_size", "count"), [(100, 4), (49, 1), (50, 2), (1, 1)])
def test_every_device_has_at_least_25_rows(batch_size, count):
    assert devices.row_mesh(batch_size).size == min(count, jax.device_count())


def devices_in_a_process(script, **environment):
    """What `script` prints, in a process of its own with no setting but these."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("XLA", "JAX"))}
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=clean | {"JAX_PLATFORMS": "cpu"} | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return int(done.stdout)


CLAIM = "from experiments.devices import claim_cores; claim_cores();"
COUNT = "import jax; print(jax.device_count())"


def test_each_core_becomes_a_device():
    assert devices_in_a_process(CLAIM + COUNT) == devices.usable_cores()


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
