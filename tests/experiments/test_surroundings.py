"""Commands where something around them is odd: streams, folders, the environment."""

import os
import pathlib
import pty
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
from commands import (
    arguments,
    assert_one_line_error,
    assert_same_run,
    command,
    command_anew,
    train,
    training,
)

from experiments.train_state import create_state, optimizer
from flax_lstm import RNNClassifier
from flax_lstm.checkpoint import checkpoint_steps, read_config

ROOT = str(pathlib.Path(__file__).parents[2])


def test_a_terminal_that_is_gone_is_one_line(trained):
    reading, writing = pty.openpty()
    line = arguments("predict", f"--workdir={trained[0]}")
    with subprocess.Popen(
        line, stdout=writing, stderr=subprocess.PIPE, text=True
    ) as process:
        os.close(writing)
        os.close(reading)
        _, errors = process.communicate(timeout=120)
    expected = (
        "python -m experiments.predict: can't write to stdout: Input/output error"
    )
    assert errors == f"{expected}\n"
    assert process.returncode == 1


def test_a_stdout_that_is_only_read_is_one_line(trained, tmp_path):
    path = tmp_path / "read"
    path.touch()
    with path.open(encoding="ascii") as reading:
        done = subprocess.run(
            arguments("predict", f"--workdir={trained[0]}"),
            stdout=reading,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert_one_line_error(done, "can't write to stdout: Bad file descriptor")


def test_a_current_folder_that_is_gone_is_one_line(tmp_path):
    folder = tmp_path / "gone"
    folder.mkdir()
    begin = f'cd "{folder}" && rmdir "{folder}" && exec "$@"'
    done = subprocess.run(
        ["bash", "-c", begin, "bash", *arguments("mnist", "--dataset=digits")],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": ROOT},
    )
    assert_one_line_error(done, "mnist: expected to be started in a folder that exists")


def test_without_a_home_directory_none_is_made_up(tmp_path):
    """As in a container, for a user that its system does not know."""
    code = """if True:
        import os, sys
        os.path.expanduser = lambda path: path
        from experiments import command_line, mnist
        command_line.run(mnist.main)
    """
    environment = os.environ | {"PYTHONPATH": ROOT}
    environment.pop("TFDS_DATA_DIR", None)

    def run(*flags):
        line = [sys.executable, "-c", code, *flags]
        return subprocess.run(
            line,
            capture_output=True,
            text=True,
            check=False,
            cwd=tmp_path,
            env=environment,
        )

    done = run("--dataset=mnist", "--workdir=run")
    message = "--data_dir: expected a folder, as there is no home directory"
    assert_one_line_error(done, message)
    done = run("--workdir=~/run")
    message = "flag --workdir=~/run: expected another path, as there is no home"
    assert_one_line_error(done, message, status=2)
    assert not (tmp_path / "~").exists()


def test_another_kind_of_keys_by_default_is_not_the_runs():
    """A workdir says what a run is; the environment of a day does not."""
    model = RNNClassifier(10, 8, 4)
    with jax.default_prng_impl("rbg"):
        state = create_state(model, optimizer(1e-3), seed=0, shape=(8, 8))
    expected = create_state(model, optimizer(1e-3), seed=0, shape=(8, 8))
    jax.tree.map(np.testing.assert_array_equal, state.params, expected.params)
    assert state.dropout_key == expected.dropout_key


@pytest.mark.slow
def test_a_run_goes_on_with_its_own_kind_of_keys(trained, tmp_path):
    flags = ("--num_epochs=21", "--dropout=0.1")
    plain = shutil.copytree(trained[0], tmp_path / "plain")
    train(plain, *flags)
    other = shutil.copytree(trained[0], tmp_path / "other")
    environment = os.environ | {"JAX_DEFAULT_PRNG_IMPL": "rbg"}
    done = command_anew(*training(other, *flags), env=environment)
    assert done.returncode == 0, done.stderr
    assert_same_run(other, plain)


@pytest.mark.parametrize(
    ("module", "flag", "message"),
    [
        ("mnist", "--nobidirectional=1", "--nobidirectional=1 does not take an"),
        ("mnist", "--flagfile={}/digit.png", "--flagfile: expected a file of UTF-8"),
        (
            "mnist",
            "--learning_rate=1e-46",
            "expected a positive number between 1.18e-38",
        ),
        ("predict", "--output={}/15.sha256", "expected a path that ends in .png"),
    ],
)
def test_a_flag_that_cannot_be_meant_is_one_line(module, flag, message, tmp_path):
    (tmp_path / "digit.png").write_bytes(b"\x89PNG")
    done = command(module, "--workdir=new", flag.format(tmp_path))
    assert_one_line_error(done, message, status=2)


@pytest.mark.parametrize("name", ["\udcff", "ü" * 70, "a..b"])
def test_a_host_that_cannot_be_one_is_one_line(name, trained):
    done = command_anew("draw", f"--workdir={trained[0]}", f"--host={name}")
    assert_one_line_error(done, "draw: --host: expected a name or an address")


def test_names_that_are_no_text_are_drawn(trained, tmp_path):
    workdir = shutil.copytree(trained[0], tmp_path / "\udcff")
    path = tmp_path / "picture.png"
    done = command("compare", f"--workdirs={workdir}", f"--output={path}")
    assert done.returncode == 0, done.stderr
    assert path.is_file()


@pytest.mark.parametrize("module", ["gradient_flow", "benchmark"])
@pytest.mark.parametrize("output", ["{}/new/", "{}/.", "{}/..", "/dev/null"])
def test_results_go_beside_no_folder_or_device(module, output, tmp_path):
    output = output.format(tmp_path)
    done = command(module, "--quick", f"--output={output}")
    message = f"--output: expected the path of a file, old or new, got {output}\n"
    assert_one_line_error(done, message)
    assert not list(tmp_path.iterdir())


def test_a_picture_does_not_go_into_a_checkpoint(trained, tmp_path):
    workdir = shutil.copytree(trained[0], tmp_path / "run")
    step = checkpoint_steps(workdir)[-1]
    inside = f"{workdir}/{step}/digit.png"
    done = command("predict", f"--workdir={workdir}", f"--output={inside}")
    assert_one_line_error(
        done, f"--output: expected a path outside of checkpoints, got {inside}"
    )
    read_config(workdir, step)  # Which compares every file with its checksum.


def test_a_link_as_the_lock_is_not_followed(tmp_path):
    precious, workdir = tmp_path / "precious", tmp_path / "run"
    precious.write_text("precious")
    workdir.mkdir()
    (workdir / ".lock").symlink_to(precious)
    done = command("mnist", "--dataset=digits", f"--workdir={workdir}")
    assert_one_line_error(done, "--workdir: expected a writable folder, got")
    assert precious.read_text() == "precious"
