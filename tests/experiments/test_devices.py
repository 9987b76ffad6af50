"""A batch spread over devices is the batch; and which devices there are."""

import types

import compiled_loops
import hypothesis.strategies as st
import jax
import numpy as np
import pytest
from hypothesis import given
from made_up_epochs import MODEL_INPUT, after_an_epoch
from own_process import number_from

from experiments import devices, training
from experiments.batches import DeviceSplit, Totals, num_batches, shares
from experiments.data import digits
from experiments.errors import RunError
from experiments.train_state import create_state, optimizer
from experiments.training import Epochs
from flax_lstm import LSTMClassifier
from flax_lstm.native.cores import usable_cores

CLAIM = "from experiments.devices import claim_cores; claim_cores();"
COUNT = "import jax; print(jax.device_count())"


@given(st.integers(1, 60), st.integers(1, 25), st.integers(1, 8))
def test_every_example_is_in_one_share_of_its_batch(examples, batch_size, count):
    order = np.random.default_rng(0).permutation(examples)
    cut = np.asarray(shares(order, batch_size, count))
    assert cut.shape[:2] == (num_batches(examples, batch_size), count)
    for number, batch in enumerate(cut):
        expected = order[number * batch_size : (number + 1) * batch_size]
        np.testing.assert_array_equal(batch[batch >= 0], expected)


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


def test_sums_of_other_devices_are_all_kept():
    totals = Totals(np.array([1.0, 2.0]), np.array([3, 4]), np.array([5, 6]))
    got = training.EpochProgress(3, totals, 1).for_devices(3)
    assert [sums.sum() for sums in got] == [3, 7, 11]
    assert len(got.loss) == 3


@pytest.mark.parametrize(("batch_size", "count"), [(100, 4), (49, 1), (50, 2), (1, 1)])
def test_every_device_has_at_least_25_rows(batch_size, count):
    assert devices.row_mesh(batch_size).size == min(count, jax.device_count())


def test_the_rows_of_a_batch_are_spread_over_all_processes(monkeypatch):
    own, others = ([types.SimpleNamespace(process_index=p)] * 8 for p in (0, 1))
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(jax, "local_devices", lambda: own)
    monkeypatch.setattr(jax, "devices", lambda: own + others)
    monkeypatch.setattr(devices, "_mesh", lambda chosen: chosen)
    assert [d.process_index for d in devices.row_mesh(100)] == [0, 0, 1, 1]


def test_more_devices_than_there_are():
    with pytest.raises(RunError, match="--num_devices: expected at most"):
        devices.row_mesh(100, jax.device_count() + 1)


def test_each_core_becomes_a_device():
    assert number_from(CLAIM + COUNT) == usable_cores()


def test_native_loops_which_use_all_cores_get_one_device(native):
    compiled = {"FLAX_LSTM_CACHE_DIR": compiled_loops.directory()}
    for cell, count in {"lstm": 1, "gru": 1, "rnn": usable_cores()}.items():
        claim = CLAIM.replace("claim_cores()", f"claim_cores(cell={cell!r})")
        assert number_from(claim + COUNT, **compiled) == count
    claim = CLAIM.replace("claim_cores()", "claim_cores(2)")
    assert number_from(claim + COUNT, **compiled) == 2


@pytest.mark.parametrize(
    "environment",
    [
        {"XLA_FLAGS": "--xla_force_host_platform_device_count=3"},
        {"JAX_NUM_CPU_DEVICES": "3"},
    ],
    ids=lambda environment: next(iter(environment)),
)
def test_a_number_of_devices_chosen_outside_is_kept(environment):
    assert number_from(CLAIM + COUNT, **environment) == 3


def test_a_backend_that_runs_is_left_alone():
    assert number_from("import jax; jax.devices();" + CLAIM + COUNT) == 1


def test_importing_the_library_sets_nothing():
    script = (
        "import jax; before = dict(jax.config.values); import flax_lstm;"
        "print(int(before == dict(jax.config.values)))"
    )
    assert number_from(script) == 1
