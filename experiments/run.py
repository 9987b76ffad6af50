"""One run from data to final test: what `python -m experiments.mnist` does."""

import contextlib
import math
import os
import sys
import time

import jax
from jax.sharding import Mesh
from tqdm import tqdm

from experiments import checkpoints, metrics, processes
from experiments.allocator import keep_if_large
from experiments.batches import DeviceSplit, num_batches
from experiments.data import choose, mnist
from experiments.data.dataset import Dataset, Share
from experiments.devices import (
    claim_cores,
    loops_on_cpu,
    require_device,
    require_memory,
    require_rows,
    row_mesh,
)
from experiments.errors import RunError, naming, within_memory
from experiments.evaluation import evaluate
from experiments.hyper_parameters import HyperParameters
from experiments.lock import sole_use
from experiments.pictures.of_run import draw_run
from experiments.pictures.prediction import save_prediction
from experiments.processes import say
from experiments.restored import restore
from experiments.stopping import Stopped, StopRequest
from experiments.train_state import TrainState, create_state, optimizer
from experiments.training import (
    EpochProgress,
    Epochs,
    NotFiniteError,
)

_RUNS = "runs"
_SHOWN_TEST_INDEX = 0
_SMALLER = "a smaller --batch_size, --hidden_size or --num_layers may help"
_SMALLER_WEIGHTS = "a smaller --hidden_size or --num_layers may help"
_MOST_STEPS = 2**31 - 1  # They are counted in 32 bits.


def train_and_test(
    parameters: HyperParameters,
    *,
    num_epochs: int,
    dataset: str,
    data_dir: str | None,
    manual_dir: str | None,
    workdir: str | None,
    num_devices: int | None = None,
) -> None:
    """Trains up to `num_epochs`, continuing what `workdir` holds, and tests again.

    With several processes (`processes.join`) all of them call this, on one file
    system. Each reads its share of the examples.

    Raises:
        RunError: whatever the user can fix, in one line; `Stopped` is one.
    """
    checkpoints.require_storable(_RUNS if workdir is None else workdir)
    keep_if_large(parameters.step_bytes)
    require_rows(parameters.batch_size, num_devices)
    claim_cores(num_devices, parameters.cell)
    require_device()
    require_memory(parameters.weights_bytes, _SMALLER_WEIGHTS)
    mesh = row_mesh(parameters.batch_size, num_devices)
    mnist.require_manual_dir(manual_dir)  # Before a workdir is made.
    choice = None
    if workdir is None:
        choice = choose.choose(dataset, None, data_dir, manual_dir)
        workdir = os.path.join(_RUNS, parameters.workdir_name(choice.name))
    flags = parameters, num_epochs, dataset, choice and choice.name, mesh.size
    processes.require_same("flags", flags)
    with processes.noticing_loss(), sole_use(workdir, processes.is_first()):
        processes.require_shared(workdir)
        with processes.first_goes_ahead("workdir"):
            recorded = _recorded_run(parameters, workdir)
        if recorded or choice is None:
            known = recorded.dataset if recorded else None
            choice = choose.choose(dataset, known, data_dir, manual_dir)
        processes.require_same("dataset", choice.name)
        say(f"Workdir: {workdir}")
        if announcement := choose.announcement(choice):
            say(announcement)
        with processes.first_goes_ahead("data"):
            share = Share(jax.process_index(), jax.process_count())
            data = choose.load(
                choice.name, data_dir, manual_dir, share, parameters.validate
            )
        say(
            f"Dataset: {data.name}, {data.train.total} training and "
            f"{data.test.total} test examples"
        )
        with StopRequest() as stop, within_memory(_SMALLER):
            _train(parameters, num_epochs, choice, data, mesh, workdir, recorded, stop)
            if processes.any_signal(stop.number):
                raise Stopped("training is done; the same command tests it", stop.by)
        if processes.is_first():
            whole = choose.load(
                choice.name, data_dir, manual_dir, validate=parameters.validate
            )
            _final_test(workdir, whole)
        processes.wait_for_all("end")


def _recorded_run(
    parameters: HyperParameters, workdir: str
) -> checkpoints.Recorded | None:
    """What `workdir` holds of this run; what is damaged is named and set aside."""
    found = checkpoints.find(workdir)
    if found.recorded:
        differences = parameters.differences(found.recorded.hyper_parameters)
        if differences:
            raise RunError(
                f"--workdir: {workdir} holds another run ({'; '.join(differences)}); "
                f"give the same flags, or another --workdir"
            )
    for problem in found.damaged.values():
        say(f"Not used: {problem}")
    with naming("--workdir"):
        if not found.recorded and metrics.rows(workdir):
            say(f"No checkpoint of the epoch in {metrics.FILE_NAME}: begins anew")
    if processes.is_first():
        checkpoints.set_aside(workdir, found.damaged)
    return found.recorded


def _train(
    parameters: HyperParameters,
    num_epochs: int,
    choice: choose.Choice,
    data: Dataset,
    mesh: Mesh,
    workdir: str,
    recorded: checkpoints.Recorded | None,
    stop: StopRequest,
) -> None:
    model, model_input = parameters.model(data), parameters.model_input(data)
    state = _first_state(parameters, num_epochs, data, model)
    checkpointer = checkpoints.Checkpoints(workdir, choice, parameters)
    with contextlib.closing(checkpointer) as saved:
        whole, progress = 0, None
        if recorded:
            state = saved.restore(recorded.step, state, mesh)
            whole, progress = recorded.epoch, recorded.progress
            _say_restored(recorded, num_epochs)
        if whole >= num_epochs:
            return
        _say_devices(mesh, parameters.cell)
        rows = _metrics_file(workdir, whole)
        epochs = Epochs(
            DeviceSplit.of(data.train, mesh),
            parameters.batch_size,
            model_input,
            mesh,
            parameters.training_recipe.warp,
        )
        test = DeviceSplit.of(data.test, mesh)
        for epoch in range(whole + 1, num_epochs + 1):
            start = time.perf_counter()
            state, progress = _run_epoch(state, epochs, epoch, progress, stop, workdir)
            if progress.steps < epochs.steps:
                saved.save(state, model, epoch - 1, progress)
                raise _stopped(stop, f"at step {progress.steps} of epoch {epoch}")
            totals = evaluate(model, state.tested_params, test, model_input, mesh)
            tested = totals.means()
            if not math.isfinite(tested["loss"]):
                raise _not_finite(workdir, f"in the test after epoch {epoch}")
            row = _row(epoch, state, progress.means, tested, start)
            if rows:
                of_run = {"dataset": data.name, "validate": parameters.validate}
                rows.append(of_run | row)
            saved.save(state, model, epoch)
            line = _epoch_line(row, num_epochs)
            if processes.any_signal(stop.number):
                # Ctrl-C also ends the `tee` that may have read this.
                with contextlib.suppress(OSError):
                    say(line)
                raise _stopped(stop, f"after epoch {epoch}")
            say(line)
            progress = epochs.start(progress)


def _metrics_file(workdir: str, whole: int) -> metrics.MetricsFile | None:
    """The first process's, which continues after the `whole` epochs."""
    if not processes.is_first():
        return None
    rows = metrics.MetricsFile(workdir, whole)
    if rows.missing:
        epochs = ", ".join(map(str, rows.missing))
        say(f"Not in {metrics.FILE_NAME}, and lost: epochs {epochs}")
    return rows


def _first_state(
    parameters: HyperParameters, num_epochs: int, data: Dataset, model
) -> TrainState:
    recipe = parameters.training_recipe
    batches = num_batches(data.train.total, parameters.batch_size)
    steps = num_epochs * batches
    if steps > _MOST_STEPS:
        raise RunError(
            f"--num_epochs: expected at most {_MOST_STEPS // batches:,} with {batches} "
            f"steps each, got {num_epochs:,}"
        )
    return create_state(
        model,
        optimizer(recipe.step_size(parameters.learning_rate, steps), recipe.clip_norm),
        parameters.seed,
        parameters.model_input(data).shape(*data.image_shape),
        recipe.average_decay,
    )


def _say_restored(recorded: checkpoints.Recorded, num_epochs: int) -> None:
    say(f"Restored: {recorded.position}")
    whole = recorded.epoch
    if whole > num_epochs or (whole == num_epochs and recorded.progress):
        say(
            f"Trained already: {recorded.position}, more than the {num_epochs} "
            f"epochs of --num_epochs; it is tested as it is"
        )


def _say_devices(mesh: Mesh, cell: str) -> None:
    kind = mesh.devices.flat[0].device_kind
    say(f"Devices: {mesh.size} x {kind}")
    if kind == "cpu":
        say(f"Loops: {loops_on_cpu(cell)}")


def _run_epoch(
    state: TrainState,
    epochs: Epochs,
    epoch: int,
    progress: EpochProgress | None,
    stop: StopRequest,
    workdir: str,
) -> tuple[TrainState, EpochProgress]:
    """To the epoch's end, or the end of a chunk if asked to stop."""
    progress = progress or epochs.start()
    before = int(state.step) - progress.steps
    with tqdm(
        total=epochs.steps,
        initial=progress.steps,
        desc=f"Epoch {epoch}",
        unit="step",
        leave=False,
        disable=not sys.stderr.isatty() or not processes.is_first(),
    ) as bar:

        def on_chunk(steps):
            bar.update(steps)
            return stop.number

        try:
            return epochs.run(state, epoch, progress, on_chunk)
        except NotFiniteError as error:
            where = f"in epoch {epoch}, step {before + error.step}"
            raise _not_finite(workdir, where) from error


def _not_finite(workdir: str, where: str) -> RunError:
    recorded = checkpoints.find(workdir).recorded
    last = f"of step {recorded.step} in {workdir}" if recorded else "none yet"
    return RunError(
        f"the loss is not finite {where}; last good checkpoint: {last}; a lower "
        f"--learning_rate may help"
    )


def _stopped(stop: StopRequest, where: str) -> Stopped:
    return Stopped(f"saved {where}; the same command continues from there", stop.by)


def _row(epoch, state, train, tested, start) -> dict:
    return {
        "epoch": epoch,
        "step": int(state.step),
        **{f"train_{name}": value for name, value in train.items()},
        **{f"test_{name}": value for name, value in tested.items()},
        "seconds": round(time.perf_counter() - start, 3),
    }


def _epoch_line(row: dict, num_epochs: int) -> str:
    return (
        f"Epoch {row['epoch']}/{num_epochs}: "
        f"train loss {_loss(row['train_loss'])}, accuracy {row['train_accuracy']:.2%}; "
        f"test loss {_loss(row['test_loss'])}, accuracy {row['test_accuracy']:.2%} "
        f"({row['seconds']:.1f} s)"
    )


def _loss(value: float) -> str:
    return f"{value:.4f}" if value < 1e6 else f"{value:.4g}"


def _final_test(workdir: str, data: Dataset) -> None:
    """As a user would: from the workdir alone, which says what model it holds."""
    classifier = restore(workdir)
    answers = classifier.answer_all(data)
    correct, examples = answers.correct, len(data.test)
    print(
        f"Final test: loss {answers.losses.mean():.4f}, "
        f"accuracy {correct / examples:.2%} ({correct} of {examples})"
    )
    shown = classifier.predict_one(data.test, _SHOWN_TEST_INDEX)
    print(f"Test example {_SHOWN_TEST_INDEX}:\n{shown.text()}")
    path = classifier.picture_path(f"test-{_SHOWN_TEST_INDEX}")
    with naming("--workdir"):
        save_prediction(shown, path)
        drawn = draw_run(classifier, data, answers)
    for picture in [path, *drawn]:
        print(f"Picture: {picture}", flush=True)
