"""Epochs on made-up images, small enough to be run on one device and on several."""

import jax
import numpy as np

from experiments import devices
from experiments.batches import DeviceSplit
from experiments.data.dataset import Split
from experiments.evaluation import evaluate
from experiments.model_input import ModelInput
from experiments.train_state import create_state, optimizer
from experiments.training import Epochs
from flax_lstm import LSTMClassifier

MODEL_INPUT = ModelInput(white=16)


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
