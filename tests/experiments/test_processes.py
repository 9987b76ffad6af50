"""Several processes on the loopback interface are one run."""

import os
import shutil
import socket
import subprocess
import time

import pytest
from commands import arguments, command, rows_of, train, training

# Processes of several devices, each of which wants all cores.
pytestmark = pytest.mark.slow

FLAGS = ("--num_epochs=4", "--dropout=0.1")
LOST = os.EX_TEMPFAIL
# Of what one process has compiled, which the others and later ones take.
_OF_CACHE = ("JAX_COMPILATION_CACHE", "JAX_PERSISTENT_CACHE")


def start(count, workdir, *flags, of_second=()):
    """Processes with one device each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    clean = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("JAX") or name.startswith(_OF_CACHE)
    }
    return [
        subprocess.Popen(
            arguments(
                *training(workdir, *flags),
                f"--coordinator_address={address}",
                f"--num_processes={count}",
                f"--process_index={index}",
                *(of_second if index == 1 else ()),
            ),
            env=clean | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(count)
    ]


def finish(processes, timeout=240):
    """(status, stdout, stderr) of each."""
    ends = []
    try:
        for process in processes:
            out, errors = process.communicate(timeout=timeout)
            ends.append((process.returncode, out, errors))
    finally:
        for process in processes:
            process.kill()
    return ends


def train_in(count, workdir, *flags):
    ends = finish(start(count, workdir, *flags))
    assert [status for status, _, _ in ends] == [0] * count, ends
    return ends[0][1], ends[1:]


@pytest.fixture(scope="module")
def one_process(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("one") / "run"
    train(workdir, "--num_devices=1", *FLAGS)
    return workdir


def assert_same_curve(workdir, expected):
    got, wanted = rows_of(workdir), rows_of(expected)
    assert [row["step"] for row in got] == [row["step"] for row in wanted]
    for row, other in zip(got, wanted, strict=True):
        assert row["train_loss"] == pytest.approx(other["train_loss"], rel=1e-4)
        assert row["test_loss"] == pytest.approx(other["test_loss"], rel=1e-3)
        assert row["train_examples"] == other["train_examples"] == 1437
        assert row["test_examples"] == other["test_examples"] == 360


@pytest.mark.parametrize("count", [2, pytest.param(4, marks=pytest.mark.long)])
def test_several_processes_follow_one(one_process, tmp_path, count):
    """60 steps, dropout included; and what is said is said once."""
    output, others = train_in(count, tmp_path, *FLAGS)
    assert f"Devices: {count} x cpu" in output
    assert "Dataset: digits, 1437 training and 360 test examples" in output
    assert "Final test: " in output
    for _, out, _ in others:  # Gloo's C++ says so in every process.
        assert all(line.startswith("[Gloo]") for line in out.splitlines()), out
    assert_same_curve(tmp_path, one_process)
    done = command("predict", f"--workdir={tmp_path}", "--index=3")
    assert done.returncode == 0, done.stderr


def wait_for_rows(workdir, count, processes):
    while all(process.poll() is None for process in processes):
        if (workdir / "metrics.jsonl").exists() and len(rows_of(workdir)) >= count:
            return
        time.sleep(0.02)
    raise AssertionError(finish(processes))


@pytest.mark.parametrize("killed", [0, pytest.param(1, marks=pytest.mark.long)])
def test_one_that_is_killed_ends_the_others_and_the_job_goes_on(tmp_path, killed):
    flags = ("--num_epochs=6", "--batch_size=50")
    whole = tmp_path / "whole"
    train(whole, "--num_devices=1", *flags)
    workdir = tmp_path / "killed"
    processes = start(2, workdir, *flags)
    wait_for_rows(workdir, 2, processes)
    processes[killed].kill()
    began = time.monotonic()
    status, _, errors = finish(processes, timeout=60)[1 - killed]
    assert time.monotonic() - began < 30
    assert status == LOST, errors
    assert errors.count("\n") == 1, errors
    assert "is gone" in errors
    output, _ = train_in(2, workdir, *flags)
    assert "Restored: epoch " in output
    for row, other in zip(rows_of(workdir), rows_of(whole), strict=True):
        assert row["train_loss"] == pytest.approx(other["train_loss"], rel=1e-4)


def test_a_checkpoint_of_four_processes_continues_on_one_and_on_two(
    one_process, tmp_path
):
    four = tmp_path / "four"
    train_in(4, four, "--num_epochs=2", "--dropout=0.1")
    two = shutil.copytree(four, tmp_path / "two")
    assert "Restored: epoch 2, step 30" in train(four, "--num_devices=1", *FLAGS)
    assert_same_curve(four, one_process)
    assert "Restored: epoch 2, step 30" in train_in(2, two, *FLAGS)[0]
    assert_same_curve(two, one_process)


@pytest.mark.long
def test_one_that_never_comes(tmp_path):
    """JAX waits a minute for it."""
    processes = start(2, tmp_path)
    processes[1].kill()
    (status, _, errors), _ = finish(processes)
    assert status == LOST, errors
    assert errors.count("\n") == 1, errors
    assert "is gone or never came" in errors


@pytest.mark.parametrize("continued", [False, True])
def test_a_folder_that_not_all_see_is_refused(continued, one_process, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    if continued:
        shutil.copytree(one_process, first)
    of_second = [f"--workdir={second}"]
    for status, _, errors in finish(start(2, first, *FLAGS, of_second=of_second)):
        assert status == 1, errors
        assert "--workdir: expected one folder that all processes see" in errors
    assert not list(second.glob("[!.]*"))
    assert not list(tmp_path.glob("*/.seen*"))


def test_different_flags_are_refused(tmp_path):
    for status, _, errors in finish(start(2, tmp_path, of_second=["--seed=1"])):
        assert status == 1, errors
        assert "flags: expected the same in all processes" in errors
