"""However a run ends, the same command finishes it as if nothing had happened."""

import ctypes
import functools
import os
import pty
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from commands import (
    arguments,
    assert_one_line_error,
    assert_same_run,
    command,
    command_anew,
    rows_of,
    train,
    training,
)

from experiments import processes, run
from experiments.checkpoints import Checkpoints
from experiments.data import choose
from experiments.data.idx import read_idx
from experiments.errors import RunError
from experiments.hyper_parameters import HyperParameters
from experiments.lock import sole_use
from experiments.stopping import StopRequest
from experiments.train_state import create_state, optimizer
from flax_lstm import LSTMClassifier
from flax_lstm.checkpoint import read_config

FLAGS = ("--num_epochs=20", "--dropout=0.1")
# Long epochs, so that a run can be stopped inside one.
WIDE = ("--batch_size=1", "--hidden_size=256")
LONG = ("--num_epochs=2", "--dropout=0.1", *WIDE)
# Few steps, behind each of which SLEEPER sleeps.
SLEPT = ("--num_epochs=2", "--dropout=0.1")
SLEPT_BEST = ("--recipe=best", "--num_epochs=3")
# The command, but for an epoch 2 that is long by what costs nothing: 15 times half a
# second, in which a signal finds it on the slowest and the fastest machine.
SLEEPER = """if True:
    import time
    from experiments import command_line, mnist, run, training

    run_steps, agree = run._run_epoch, training.agree

    def agree_later(*numbers):
        time.sleep(0.5)
        return agree(*numbers)

    def run_one_by_one(state, epochs, epoch, *others):
        if epoch == 2:
            training._CHUNK_SECONDS, training.agree = 0.0, agree_later
        return run_steps(state, epochs, epoch, *others)

    run._run_epoch = run_one_by_one
    command_line.run(mnist.main)
"""


def start(workdir, *flags, **options):
    return popen(arguments(*training(workdir, *flags)), **options)


def start_sleeper(workdir, *flags):
    _, *rest = training(workdir, *flags)
    return popen([sys.executable, "-c", SLEEPER, *rest])


def popen(line, **options):
    return subprocess.Popen(
        line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
    )


def wait_until(is_so, process):
    while process.poll() is None:
        if is_so():
            return
        time.sleep(0.02)
    raise AssertionError(f"ended with {process.returncode}: {process.stderr.read()}")


def wait_for_rows(workdir, count, process):
    path = workdir / "metrics.jsonl"
    wait_until(lambda: path.exists() and len(rows_of(workdir)) >= count, process)


def wait_for_a_checkpoint(workdir, process):
    wait_until(lambda: list(workdir.glob("*.sha256")), process)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """Gives the workdir of a whole run with these flags, made once."""

    @functools.cache
    def run(flags):
        workdir = tmp_path_factory.mktemp("long") / "digits"
        train(workdir, *flags)
        return workdir

    return run


@pytest.mark.parametrize(
    ("begin", "flags", "number"),
    [
        (start_sleeper, SLEPT, signal.SIGTERM),
        pytest.param(start, LONG, signal.SIGINT, marks=pytest.mark.long),
        # The mean of the parameters, the schedule and the warps go on as well.
        pytest.param(start_sleeper, SLEPT_BEST, signal.SIGTERM, marks=pytest.mark.slow),
    ],
)
def test_a_signal_saves_inside_the_epoch_and_the_run_goes_on(
    uninterrupted, tmp_path, begin, flags, number
):
    workdir = tmp_path / "run"
    process = begin(workdir, *flags)
    wait_for_a_checkpoint(workdir, process)
    time.sleep(0.3)
    process.send_signal(number)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 128 + number, errors
    noted, ended = errors.splitlines()
    assert noted.startswith("stopping after the steps under way")
    assert re.search(rf"stopped by {number.name}; saved at step \d+ of epoch 2", ended)
    assert len(rows_of(workdir)) == 1
    if flags != SLEPT_BEST:  # A schedule's step sizes belong to one number of epochs.
        copy = shutil.copytree(workdir, tmp_path / "copy")
        tested = train(copy, *flags[1:], "--num_epochs=1")
        assert re.search(
            r"Trained already: epoch 1 and \d+ steps, .* than the 1", tested
        )
    assert re.search(r"Restored: epoch 1 and \d+ steps, step", train(workdir, *flags))
    assert_same_run(workdir, uninterrupted(flags))


def test_a_signal_saves_where_stderr_cannot_be_written_to(tmp_path):
    """Ctrl-C in a terminal also ends the `tee` of `2>&1 | tee log`."""
    workdir = tmp_path / "run"
    _, *flags = training(workdir, *SLEPT)
    reading, writing = os.pipe()
    with subprocess.Popen(
        [sys.executable, "-c", SLEEPER, *flags], stdout=writing, stderr=writing
    ) as process:
        os.close(writing)
        with open(reading, encoding="utf-8") as output:
            # The next one is that of epoch 2.
            assert any(line.startswith("Epoch 1/2: ") for line in output)
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
    assert process.returncode == 128 + signal.SIGINT
    assert read_config(workdir)["step"] not in (15, 30)


def test_a_terminal_that_is_closed_saves(tmp_path):
    """What its shell is sent, a command in the foreground is sent too."""
    workdir = tmp_path / "run"
    _, *flags = training(workdir, *SLEPT)
    reading, writing = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-c", SLEEPER, *flags],
        stdin=writing,
        stdout=writing,
        stderr=writing,
    ) as process:
        os.close(writing)
        wait_for_a_checkpoint(workdir, process)
        time.sleep(0.3)
        os.close(reading)
        process.send_signal(signal.SIGHUP)
    assert process.returncode == 128 + signal.SIGHUP
    assert read_config(workdir)["step"] not in (15, 30)


def test_a_signal_when_all_is_trained_ends_the_run_too(trained, tmp_path):
    workdir = shutil.copytree(trained[0], tmp_path / "run")
    code = """if True:
        import os, signal
        from experiments import command_line, mnist, run

        def stop(*arguments):
            os.kill(os.getpid(), signal.SIGTERM)

        run._train = stop
        command_line.run(mnist.main)
    """
    flags = ["--dataset=digits", f"--workdir={workdir}", *FLAGS]
    done = subprocess.run(
        [sys.executable, "-c", code, *flags],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 128 + signal.SIGTERM, done.stderr
    assert "stopped by SIGTERM; training is done; the same command tests" in done.stderr
    assert "Final test" not in done.stdout


def test_a_signal_that_is_ignored_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with StopRequest() as stop:
            os.kill(os.getpid(), signal.SIGINT)
            assert stop.number == 0
            os.kill(os.getpid(), signal.SIGTERM)
            assert stop.by is signal.SIGTERM
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_afterwards_a_signal_does_what_it_did_before():
    def own(number, frame):
        pass

    before = signal.signal(signal.SIGTERM, own)
    try:
        with StopRequest():
            assert signal.getsignal(signal.SIGTERM) is not own
        assert signal.getsignal(signal.SIGTERM) is own
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_signal_to_any_process_stops_all(monkeypatch):
    told = [[3, 0], [5, signal.SIGTERM]]
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(
        processes.multihost_utils, "process_allgather", lambda own: np.array(told)
    )
    assert processes.agree(*told[0]) == (3, signal.SIGTERM)


def test_a_second_signal_ends_at_once():
    code = """if True:
        import os, signal
        from experiments.stopping import StopRequest

        with StopRequest():
            os.kill(os.getpid(), signal.SIGTERM)
            print("went on", flush=True)
            os.kill(os.getpid(), signal.SIGINT)
            print("and on", flush=True)
    """
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 128 + signal.SIGINT
    assert done.stdout == "went on\n"
    noted, ended = done.stderr.splitlines()
    assert noted.startswith("stopping after the steps under way")
    assert ended == "ended at once; what was saved before is intact"


def test_a_signal_while_the_last_line_is_printed_ends_at_once():
    """Its handler is in the thread that prints, and would wait for itself."""
    code = """if True:
        import os, signal, sys
        from experiments import command_line
        from experiments.errors import RunError

        class Interrupted:
            def write(self, text):
                os.kill(os.getpid(), signal.SIGINT)

        def main():
            sys.__stderr__ = Interrupted()
            raise RunError("not possible")

        command_line.run(main)
    """
    done = subprocess.run([sys.executable, "-c", code], check=False, timeout=60)
    assert done.returncode == 128 + signal.SIGINT


def test_ctrl_c_is_not_lost_in_a_callback_whose_errors_are_dropped():
    """As JAX's, which Python calls while it collects garbage."""
    code = """if True:
        import gc, os, signal, sys
        from experiments import command_line

        def interrupt(phase, info):
            os.kill(os.getpid(), signal.SIGINT)

        def main():
            gc.callbacks.append(interrupt)
            gc.collect()
            print("went on")

        command_line.run(main)
    """
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert_one_line_error(done, "interrupted", 128 + signal.SIGINT)
    assert done.stdout == ""


def kill_at_random_moments(workdir, kills, whole, whole_seconds, flags):
    """How many were killed; a run that is through is checked, and begins anew.

    Early moments first, which find it running, however fast it is by now.
    """
    rng = random.Random(0)
    killed = 0
    for moment in sorted(rng.uniform(0, whole_seconds) for _ in range(kills)):
        process = start(workdir, *flags)
        try:
            process.communicate(timeout=moment)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            killed += 1
        else:
            assert_same_run(workdir, whole)
            shutil.rmtree(workdir)
    return killed


@pytest.mark.parametrize(
    "kills",
    [
        pytest.param(4, marks=pytest.mark.slow),
        pytest.param(50, marks=pytest.mark.long),
    ],
)
def test_sigkill_anywhere_loses_nothing(trained, tmp_path, kills):
    whole = tmp_path / "whole"
    began = time.monotonic()
    train(whole, *FLAGS, by=command_anew)
    seconds = time.monotonic() - began
    assert_same_run(whole, trained[0])
    workdir = tmp_path / "killed"
    assert kill_at_random_moments(workdir, kills, whole, seconds, FLAGS) > 0
    train(workdir, *FLAGS)
    assert_same_run(workdir, trained[0])
    done = [command("predict", f"--workdir={w}", "--index=7") for w in (whole, workdir)]
    answers = [d.stdout.replace(str(whole), str(workdir)) for d in done]
    assert answers[0] == answers[1] != ""


def test_a_second_run_on_one_workdir_is_refused(tmp_path):
    """Before it looks at what the first may just be writing, or removing."""
    half_written = tmp_path / "7"
    half_written.mkdir()
    with sole_use(str(tmp_path)):
        done = command(*training(tmp_path))
        assert_one_line_error(done, f"--workdir: {tmp_path} is in use by another run")
    assert not (tmp_path / "metrics.jsonl").exists()
    with sole_use(str(tmp_path)):
        pass


def test_a_run_that_is_refused_names_the_one_that_is_there(tmp_path):
    (tmp_path / ".lock").write_text("12345678\n")  # Of an earlier one.
    with sole_use(str(tmp_path)):
        message = rf"in use by another run \(process {os.getpid()}\)$"
        with pytest.raises(RunError, match=message), sole_use(str(tmp_path)):
            pass


class _Enough(Exception):
    pass


def test_an_epochs_row_is_written_before_its_checkpoint(tmp_path, monkeypatch):
    """A run that is killed in between has a row too many, and never one too few."""
    found = []

    def save(*arguments):
        found.extend(rows_of(tmp_path))
        raise _Enough

    monkeypatch.setattr(Checkpoints, "save", save)
    with pytest.raises(_Enough):
        run.train_and_test(
            HyperParameters(hidden_size=4, num_layers=1, batch_size=1437),
            num_epochs=1,
            dataset="digits",
            data_dir=None,
            manual_dir=None,
            workdir=str(tmp_path),
            num_devices=1,
        )
    assert [row["epoch"] for row in found] == [1]


@pytest.mark.slow
def test_a_disk_that_is_full_loses_nothing(trained, tmp_path):
    train(tmp_path, "--num_epochs=2", "--dropout=0.1")

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    done = command(*training(tmp_path, *FLAGS), preexec_fn=limit)
    assert_one_line_error(done, f"saving step 45 in {tmp_path} failed")
    train(tmp_path, *FLAGS)
    assert_same_run(tmp_path, trained[0])


def obey_permissions():
    """Takes from root, too, the right to write where the mode forbids it."""
    drop_from_bounding_set, dac_override = 24, 1  # linux/prctl.h, capability.h
    if os.geteuid() == 0:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(drop_from_bounding_set, dac_override, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "prctl")


def set_mode(workdir, mode):
    """Of the folder and those in it."""
    for folder in (workdir, *(p for p in workdir.rglob("*") if p.is_dir())):
        folder.chmod(mode)


@pytest.mark.slow
def test_a_read_only_workdir_is_an_error(tmp_path):
    train(tmp_path, "--num_epochs=1", "--dropout=0.1")
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    set_mode(tmp_path, 0o555)
    done = command(*training(tmp_path, *FLAGS), preexec_fn=obey_permissions)
    assert_one_line_error(
        done, f"--workdir: expected a writable folder, got {tmp_path}"
    )
    assert {p: p.read_bytes() for p in before} == before


@pytest.mark.slow
def test_a_workdir_made_read_only_while_running_is_an_error(trained, tmp_path):
    process = start(tmp_path, *FLAGS, preexec_fn=obey_permissions)
    wait_for_rows(tmp_path, 3, process)
    set_mode(tmp_path, 0o555)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors.count("\n")) == (1, 1), errors
    assert "--workdir: " in errors
    set_mode(tmp_path, 0o755)
    train(tmp_path, *FLAGS)
    assert_same_run(tmp_path, trained[0])


def test_a_folder_that_is_replaced_during_a_save_is_an_error(tmp_path, monkeypatch):
    """As when somebody removes it, and Orbax makes it anew for what is left to save."""
    workdir = tmp_path / "run"
    workdir.mkdir()
    model = LSTMClassifier(3, 2, 4, 1)
    state = create_state(model, optimizer(1e-3), 0, (5, 2))
    saved = Checkpoints(str(workdir), choose.Choice("digits"), HyperParameters())
    save = saved._manager.save

    def save_and_replace(*arguments, **options):
        save(*arguments, **options)
        saved._manager.wait_until_finished()
        shutil.rmtree(workdir)
        workdir.mkdir()

    monkeypatch.setattr(saved._manager, "save", save_and_replace)
    with pytest.raises(RunError, match=r"^--workdir: saving step 0 .* was replaced"):
        saved.save(state, model, epoch=1)
    assert not list(workdir.iterdir())


@pytest.mark.slow
def test_a_workdir_that_vanishes_is_an_error(tmp_path):
    workdir = tmp_path / "run"
    process = start(workdir, *LONG[1:], "--num_epochs=3")
    wait_for_rows(workdir, 2, process)  # The first is saved, then.
    workdir.rename(tmp_path / "elsewhere")
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert errors.count("\n") == 1
    assert "--workdir" in errors
    assert len(list((tmp_path / "elsewhere").glob("*.sha256"))) > 0


@pytest.mark.slow
def test_nothing_is_said_of_what_an_end_leaves_behind(tmp_path):
    """As it would be where processes are not forked, Python's way from 3.14 on."""
    program = (
        "import multiprocessing, runpy\n"
        "multiprocessing.set_start_method('forkserver')\n"
        "runpy.run_module('experiments.mnist', run_name='__main__', alter_sys=True)"
    )
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            program,
            *training(tmp_path, "--learning_rate=1e38")[1:],
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert_one_line_error(done, "the loss is not finite in epoch 1, step ")


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    done = command(*training(tmp_path, "--learning_rate=1e38"))
    assert_one_line_error(done, "the loss is not finite in epoch 1, step ")
    assert "last good checkpoint: none yet" in done.stderr
    assert not list(tmp_path.glob("*.sha256"))


@pytest.mark.slow
def test_sigkill_while_the_data_is_prepared(tmp_path):
    """What is half prepared is never taken for the data set."""
    manual_dir = os.environ.get("MNIST_DIR", "../shared/mnist")
    if not os.path.isdir(manual_dir):
        pytest.skip(f"needs MNIST's four files in $MNIST_DIR ({manual_dir})")
    data_dir = tmp_path / "data"
    script = (
        "import sys; from experiments.data import mnist;"
        "data = mnist.load(*sys.argv[1:]);"
        "print(sum(int(split.images.sum()) for split in (data.train, data.test)))"
    )
    line = [sys.executable, "-c", script, str(data_dir), manual_dir]
    rng = random.Random(0)
    for _ in range(6):
        process = subprocess.Popen(line, stdout=subprocess.DEVNULL)
        try:
            process.communicate(timeout=rng.uniform(1, 12))
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    total = 0
    for name, count in (("train", 60_000), ("t10k", 10_000)):
        path = os.path.join(manual_dir, f"{name}-images-idx3-ubyte.gz")
        total += int(read_idx(path, (count, 28, 28)).sum())
    # TFDS, too, has written to stdout.
    assert int(done.stdout.split()[-1]) == total
