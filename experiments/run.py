"""One run from data to final test: what `python -m experiments.mnist` does."""

import os
import sys
import time

from tqdm import tqdm

from experiments import checkpoints, metrics, prediction
from experiments.batches import DeviceSplit
from experiments.data import choose
from experiments.data.dataset import Dataset
from experiments.devices import claim_cores, replicated, row_mesh
from experiments.errors import RunError
from experiments.evaluation import evaluate
from experiments.hyper_parameters import HyperParameters
from experiments.restored import restore
from experiments.training import Epochs, TrainState, create_state
from flax_lstm import LSTMClassifier

_RUNS = "runs"
_SHOWN_TEST_INDEX = 0


def train_and_test(
    parameters: HyperParameters,
    *,
    num_epochs: int,
    dataset: str,
    data_dir: str | None,
    manual_dir: str | None,
    workdir: str | None,
) -> None:
    """Trains up to `num_epochs`, continuing what `workdir` holds, and tests again.

    Raises:
        RunError: whatever the user can mend, in one line.
    """
    claim_cores()
    choice, workdir, recorded = _settle(
        parameters, dataset, data_dir, manual_dir, workdir
    )
    print(f"Workdir: {workdir}", flush=True)
    if announcement := choose.announcement(choice):
        print(announcement, flush=True)
    data = choose.load(choice.name, data_dir, manual_dir)
    print(
        f"Dataset: {data.name}, {len(data.train)} training and {len(data.test)} test "
        f"examples",
        flush=True,
    )
    _train(parameters, num_epochs, choice, data, workdir, recorded)
    _final_test(workdir, data)


def _settle(parameters, wanted, data_dir, manual_dir, workdir):
    """Dataset, workdir and the record in it, each of which depends on the others."""
    if workdir is not None:
        recorded = checkpoints.read_recorded(workdir)
        known = recorded and recorded.dataset
        choice = choose.choose(wanted, known, data_dir, manual_dir)
    else:
        choice = choose.choose(wanted, None, data_dir, manual_dir)
        workdir = os.path.join(_RUNS, parameters.workdir_name(choice.name))
        recorded = checkpoints.read_recorded(workdir)
    if recorded:
        differences = parameters.differences(recorded.hyper_parameters)
        if differences:
            raise RunError(
                f"--workdir: {workdir} holds another run ({'; '.join(differences)}); "
                f"give the same flags, or another --workdir"
            )
    return choice, workdir, recorded


def _train(
    parameters: HyperParameters,
    num_epochs: int,
    choice: choose.Choice,
    data: Dataset,
    workdir: str,
    recorded: checkpoints.Recorded | None,
) -> None:
    model = parameters.model(data)
    state = create_state(
        model, parameters.learning_rate, parameters.seed, data.train.images.shape[1:]
    )
    saved = checkpoints.Checkpoints(workdir, choice, parameters)
    try:
        first_epoch = 1
        if recorded:
            state = saved.restore(recorded.step, state)
            first_epoch = recorded.epoch + 1
            print(f"Restored: epoch {recorded.epoch}, step {recorded.step}", flush=True)
        if first_epoch > num_epochs:
            return
        rows = metrics.MetricsFile(workdir, first_epoch - 1)
        mesh = row_mesh(parameters.batch_size)
        kind = mesh.devices.flat[0].device_kind
        print(f"Devices: {mesh.size} x {kind}", flush=True)
        epochs = Epochs(
            DeviceSplit.of(data.train, mesh), parameters.batch_size, data.white, mesh
        )
        test = DeviceSplit.of(data.test, mesh)
        for epoch in range(first_epoch, num_epochs + 1):
            state, row = _run_epoch(model, state, epochs, test, data.white, epoch)
            rows.append({"dataset": data.name, **row})
            saved.save(state, model, epoch)
            print(_epoch_line(row, num_epochs), flush=True)
    finally:
        saved.close()


def _run_epoch(
    model: LSTMClassifier,
    state: TrainState,
    epochs: Epochs,
    test: DeviceSplit,
    white: int,
    epoch: int,
) -> tuple[TrainState, dict]:
    start = time.perf_counter()
    with tqdm(
        total=epochs.steps,
        desc=f"Epoch {epoch}",
        unit="step",
        leave=False,
        disable=not sys.stderr.isatty(),
    ) as bar:
        state, totals = epochs.run(state, epoch, bar.update)
    train = totals.means()
    tested = evaluate(model, state.params, test, white, epochs.mesh).means()
    return state, {
        "epoch": epoch,
        "step": int(state.step),
        **{f"train_{name}": value for name, value in train.items()},
        **{f"test_{name}": value for name, value in tested.items()},
        "seconds": round(time.perf_counter() - start, 3),
    }


def _epoch_line(row: dict, num_epochs: int) -> str:
    return (
        f"Epoch {row['epoch']}/{num_epochs}: "
        f"train loss {row['train_loss']:.4f}, accuracy {row['train_accuracy']:.2%}; "
        f"test loss {row['test_loss']:.4f}, accuracy {row['test_accuracy']:.2%} "
        f"({row['seconds']:.1f} s)"
    )


def _final_test(workdir: str, data: Dataset) -> None:
    """As a user would: from the workdir alone, which says what model it holds."""
    classifier = restore(workdir)
    mesh = row_mesh(len(data.test))
    params = replicated(classifier.variables["params"], mesh)
    test = DeviceSplit.of(data.test, mesh)
    totals = evaluate(classifier.model, params, test, data.white, mesh)
    means = totals.means()
    print(
        f"Final test: loss {means['loss']:.4f}, accuracy {means['accuracy']:.2%} "
        f"({int(totals.correct)} of {means['examples']})"
    )
    shown = prediction.predict(
        classifier.model,
        classifier.variables,
        data.test.images[_SHOWN_TEST_INDEX],
        data.white,
        int(data.test.labels[_SHOWN_TEST_INDEX]),
    )
    print(f"Test example {_SHOWN_TEST_INDEX}:\n{shown.text()}")
    path = classifier.picture_path(f"test-{_SHOWN_TEST_INDEX}")
    shown.save_figure(path)
    print(f"Picture: {path}", flush=True)
