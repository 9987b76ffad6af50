"""What a command answers to what it can't do, in the command line's own words."""

import errno
import fcntl
import os
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest
from commands import arguments, assert_one_line_error, command, command_anew, train
from PIL import Image

from experiments import checkpoints, metrics
from experiments.devices import require_rows
from experiments.errors import RunError
from experiments.hyper_parameters import HyperParameters
from experiments.lock import sole_use
from flax_lstm import _manifest
from flax_lstm.checkpoint import checkpoint_steps, read_config

NEEDED = {
    "compare": "--workdirs=None: expected folders of runs of experiments.mnist",
    "draw": "--workdir=None: expected the folder of a run of experiments.mnist",
    "predict": "--workdir=None: expected the folder of a run of experiments.mnist",
}


@pytest.mark.parametrize("module", NEEDED)
def test_a_flag_that_is_needed_says_what_it_is(module):
    assert_one_line_error(command(module), NEEDED[module], status=2)


def test_a_path_that_is_empty_is_none():
    done = command("mnist", "--workdir=")
    assert_one_line_error(done, "flag --workdir=: expected a path", status=2)


def test_more_devices_than_rows_are_refused_before_they_are_made():
    require_rows(100, 100)
    require_rows(100, None)
    with pytest.raises(RunError, match=r"--num_devices: .* 100, the rows .*, got 101"):
        require_rows(100, 101)
    done = command("mnist", "--dataset=digits", "--num_devices=100000")
    assert_one_line_error(done, "--num_devices: expected at most 100, the rows of a")


def test_a_warning_is_one_line_and_a_checkpoint_is_told_from_its_run(tmp_path):
    flags = "--num_epochs=1", "--hidden_size=8", "--num_layers=1", "--dropout=0.5"
    done = command("mnist", "--dataset=digits", f"--workdir={tmp_path}", *flags)
    assert done.returncode == 0, done.stderr
    expected = "python -m experiments.mnist: note: dropout: it is applied after every"
    assert done.stderr.startswith(expected)
    assert done.stderr.count("\n") == 1
    done = command("predict", f"--workdir={tmp_path}/15")
    assert_one_line_error(done, f"it is itself the checkpoint of step 15 in {tmp_path}")


def test_ctrl_c_while_a_command_imports_is_one_line():
    """Which takes seconds, in which Python's own handler may raise within JAX."""
    line = [sys.executable, "-X", "importtime", *arguments("mnist")[1:], "--help"]
    with subprocess.Popen(line, stderr=subprocess.PIPE, text=True) as process:
        for told in process.stderr:
            if told.endswith("experiments.command_line\n"):
                process.send_signal(signal.SIGINT)
                break
        errors = process.stderr.read()
    assert process.returncode == 130
    assert errors.endswith("python -m experiments.mnist: interrupted\n")
    assert "Traceback" not in errors


def test_output_that_cannot_be_written_is_one_line(tmp_path):
    flags = "--num_epochs=1", "--hidden_size=8", "--num_layers=1"
    workdir = f"--workdir={tmp_path}"
    with open("/dev/full", "w", encoding="ascii") as full:
        done = subprocess.run(
            [*arguments("mnist", "--dataset=digits", workdir, *flags)],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    expected = "python -m experiments.mnist: can't write to stdout: No space left on "
    assert done.stderr == f"{expected}device\n"
    assert done.returncode == 1
    # Without stdout and stderr it goes on where it stopped.
    closed = [*arguments("mnist", "--dataset=digits", workdir, *flags)]
    closing = ["sh", "-c", 'exec "$@" >&- 2>&-', "sh", *closed]
    assert subprocess.run(closing, check=False).returncode == 0
    assert (tmp_path / "test-0.png").is_file()


def test_a_note_that_cannot_be_printed_ends_no_run(tmp_path):
    flags = "--num_epochs=1", "--hidden_size=8", "--num_layers=1", "--dropout=0.5"
    with open("/dev/full", "w", encoding="ascii") as full:
        done = subprocess.run(
            [*arguments("mnist", "--dataset=digits", f"--workdir={tmp_path}", *flags)],
            stdout=subprocess.PIPE,
            stderr=full,
            text=True,
            check=False,
            env=os.environ | {"PYTHONUNBUFFERED": "1"},
        )
    assert done.returncode == 0
    assert "Final test: " in done.stdout


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_no_file_takes_the_place_of_a_closed_stream(closed, tmp_path):
    program = (
        "import os, sys\n"
        "from experiments import streams\n"
        "streams.open_closed()\n"
        "print('out')\n"
        "print('error', file=sys.stderr)\n"
        "sys.exit(os.open(sys.argv[1], os.O_CREAT | os.O_RDWR))"
    )
    path = tmp_path / "file"
    line = ["sh", "-c", f'exec "$@" {closed}', "sh", sys.executable, "-c", program]
    done = subprocess.run([*line, str(path)], check=False, capture_output=True)
    assert done.returncode > 2
    assert path.read_bytes() == b""


@pytest.mark.parametrize(("output", "status"), [("| true", 141), ("> /dev/full", 1)])
def test_help_that_cannot_be_printed_is_no_traceback(output, status):
    line = f"set -o pipefail; {shlex.join(arguments('predict', '--help'))} {output}"
    done = subprocess.run(
        ["bash", "-c", line], capture_output=True, text=True, check=False
    )
    assert done.returncode == status
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("module", ["mnist", "predict"])
def test_a_backend_that_is_missing_is_named(module, trained):
    environment = os.environ | {"JAX_PLATFORMS": "no_such_platform"}
    done = command_anew(module, f"--workdir={trained[0]}", env=environment)
    expected = "JAX finds no device to run on (JAX_PLATFORMS: no_such_platform): "
    assert_one_line_error(done, expected)


def test_the_picture_of_image_is_not_replaced(trained, tmp_path):
    own = tmp_path / "own.png"
    Image.fromarray(np.full((28, 28), 255, np.uint8)).save(own)
    before = own.read_bytes()
    flags = f"--workdir={trained[0]}", f"--image={own}", f"--output={own}"
    for module in ("predict", "gates"):
        done = command(module, *flags)
        assert_one_line_error(done, "--output: expected another file than that of --im")
    assert own.read_bytes() == before


def test_epochs_whose_metrics_are_lost_are_named(trained, tmp_path):
    workdir = shutil.copytree(trained[0], tmp_path / "run")
    path = workdir / metrics.FILE_NAME
    first, *others = path.read_text().splitlines(keepends=True)
    assert '"epoch": 1,' in first
    path.write_text("".join(others))
    flags = f"--num_epochs={len(others) + 2}", "--dropout=0.1"
    output = train(workdir, *flags)
    assert f"Not in {metrics.FILE_NAME}, and lost: epochs 1\n" in output


def test_flask_that_is_missing_is_named(tmp_path):
    (tmp_path / "flask.py").write_text("raise ModuleNotFoundError(name='flask')\n")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": path}
    done = command_anew("draw", "--workdir=none", env=environment)
    assert_one_line_error(done, "needs Flask, which can't be imported here")


def test_metrics_that_cannot_be_read_are_named(tmp_path):
    (tmp_path / metrics.FILE_NAME).mkdir()
    message = f"can't read {tmp_path}/{metrics.FILE_NAME}: Is a directory"
    done = command("compare", f"--workdirs={tmp_path}", f"--output={tmp_path}/a.png")
    assert_one_line_error(done, f"--workdirs: {message}")
    done = command("mnist", "--dataset=digits", f"--workdir={tmp_path}")
    assert_one_line_error(done, f"--workdir: {message}")


def test_a_damaged_line_of_metrics_does_not_cost_those_after_it(trained, tmp_path):
    path = tmp_path / metrics.FILE_NAME
    lines = (trained[0] / metrics.FILE_NAME).read_text().splitlines(keepends=True)
    rows = metrics.rows(str(trained[0]))
    path.write_text("".join([*lines[:5], lines[5][:40]]))  # As by a crash.
    assert metrics.rows(str(tmp_path)) == rows[:5]
    lines[1] = f"#{lines[1]}"
    path.write_text("".join(lines))
    message = f"--workdir: expected a row of metrics in line 2 of {path}"
    done = command("mnist", "--dataset=digits", f"--workdir={tmp_path}")
    assert_one_line_error(done, message)
    assert path.read_text() == "".join(lines)


def test_a_run_that_lost_its_first_checkpoint_says_that_it_begins_anew(
    trained, tmp_path
):
    first, *_ = (trained[0] / metrics.FILE_NAME).read_text().splitlines()
    (tmp_path / metrics.FILE_NAME).write_text(f"{first}\n")
    flags = "--num_epochs=1", "--hidden_size=8", "--num_layers=1"
    done = command("mnist", "--dataset=digits", f"--workdir={tmp_path}", *flags)
    assert done.returncode == 0, done.stderr
    message = "No checkpoint of the epoch in metrics.jsonl: begins anew"
    assert done.stdout.count(message) == 1
    assert [row["epoch"] for row in metrics.rows(str(tmp_path))] == [1]


def test_a_run_that_lost_the_checkpoints_of_two_epochs_does_not(trained, tmp_path):
    lines = (trained[0] / metrics.FILE_NAME).read_text().splitlines(keepends=True)
    (tmp_path / metrics.FILE_NAME).write_text("".join(lines[:2]))
    with pytest.raises(RunError, match=r"there is none, but 2 epochs in metrics"):
        checkpoints.find(str(tmp_path))


PATHS = {
    "pattern": ("run[1]", "expected a path without [, which Orbax takes"),
    "backslash": ("a\\b", "expected one without a backslash, which Orbax takes"),
    "latin-1": ("r\udcff", "expected one in UTF-8, got"),
    "address": ("s3://bucket", "expected a folder of this machine, got"),
    "folder_as_an_address": ("gs:", "expected a folder of this machine, got"),
}


@pytest.mark.parametrize(("name", "message"), PATHS.values(), ids=PATHS)
def test_a_workdir_that_orbax_would_not_read_back(name, message, tmp_path):
    workdir = f"--workdir={tmp_path}/{name}/run"
    done = command("mnist", "--dataset=digits", workdir)
    assert_one_line_error(done, f"--workdir: {message}")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["{}", "{}/config", "{}/params/new", "link"])
def test_nothing_is_trained_inside_a_checkpoint(name, trained, tmp_path):
    """As by somebody who means to continue from it."""
    workdir = shutil.copytree(trained[0], tmp_path / "run")
    step = checkpoint_steps(workdir)[-1]
    (workdir / "link").symlink_to(str(step))
    inside = f"{workdir}/{name.format(step)}"
    done = command("mnist", "--dataset=digits", f"--workdir={inside}")
    message = f"--workdir: expected a path outside of checkpoints, got {inside}, which"
    assert_one_line_error(done, f"{message} is of that of step {step} in {workdir}")
    read_config(workdir, step)  # Which compares every file with its checksum.


def test_a_folder_with_a_number_as_its_name_is_not_taken_for_a_checkpoint(
    trained, tmp_path
):
    workdir = shutil.copytree(trained[0], tmp_path / "run")
    notes = workdir / "7" / "notes"
    notes.parent.mkdir()
    notes.write_text("precious")
    done = command("mnist", "--dataset=digits", f"--workdir={workdir}")
    message = "--workdir: expected no folders but checkpoints with numbers as names"
    assert_one_line_error(done, f"{message}, got {workdir}/7")
    assert notes.read_text() == "precious"


@pytest.mark.parametrize("flag", ["--batch_size", "--hidden_size", "--num_layers"])
def test_a_number_of_more_than_32_bits_is_out_of_range(flag):
    done = command("mnist", f"{flag}={2**31}")
    assert_one_line_error(done, f"{flag}=2147483648", status=2)


def test_more_steps_than_are_counted(tmp_path):
    flags = "--recipe=fast", "--num_epochs=1000000000"
    done = command("mnist", "--dataset=digits", f"--workdir={tmp_path}", *flags)
    message = "--num_epochs: expected at most 143,165,576 with 15 steps each, got"
    assert_one_line_error(done, message)


def test_what_the_terminal_cannot_show_is_no_error(tmp_path):
    name = tmp_path / "ü"
    done = command_anew(
        "predict", f"--workdir={name}", env=os.environ | {"PYTHONIOENCODING": "ascii"}
    )
    escaped = str(name).replace("ü", "\\xfc")
    assert_one_line_error(done, f"got {escaped}")


def test_a_lock_that_cannot_be_had_or_written_names_the_workdir(tmp_path, monkeypatch):
    def refuse(file, operation):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", refuse)
    message = rf"^--workdir: can't lock and write {tmp_path}/\.lock \(Function not"
    with pytest.raises(RunError, match=message), sole_use(str(tmp_path)):
        pass


def test_a_disk_that_is_full_at_the_lock_is_not_called_stdout(tmp_path):
    def limit():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # An error, then, as of a disk.
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))

    line = arguments("mnist", "--dataset=digits", f"--workdir={tmp_path}")
    done = subprocess.run(
        line, capture_output=True, text=True, check=False, preexec_fn=limit
    )
    message = f"--workdir: can't lock and write {tmp_path}/.lock (File too large)"
    assert_one_line_error(done, message)


def test_a_look_at_the_lock_does_not_keep_a_run_out(tmp_path):
    with sole_use(str(tmp_path)):
        pass
    with open(tmp_path / ".lock", encoding="ascii") as looking:
        fcntl.flock(looking, fcntl.LOCK_SH)
        done = threading.Timer(0.05, fcntl.flock, (looking, fcntl.LOCK_UN))
        done.start()
        with sole_use(str(tmp_path)):
            pass


def test_a_checkpoint_that_cannot_be_read_is_not_taken_for_a_damaged_one(
    tmp_path, monkeypatch
):
    folder = tmp_path / "3"
    folder.mkdir()
    (folder / "file").write_text("content")
    _manifest.write_manifest(str(tmp_path), 3)

    def refuse(path):
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(PermissionError, match=r"Permission denied: .*3'$"):
        _manifest.verify(str(tmp_path), 3)


def test_a_recipe_without_planned_epochs_has_none_to_differ():
    notes = HyperParameters.of_recipe("notes", 5, **dict.fromkeys(FROM_RECIPE))
    fast = HyperParameters.of_recipe("fast", 1, **dict.fromkeys(FROM_RECIPE))
    differing = [text.partition(":")[0] for text in notes.differences(vars(fast))]
    assert differing == ["--recipe", "--learning_rate"]


FROM_RECIPE = ("batch_size", "learning_rate", "dropout")
PROCESSES = "--num_processes=2", "--process_index=2"


def test_flags_that_contradict_each_other(tmp_path):
    done = command("mnist", "--coordinator_address=localhost:9876", *PROCESSES)
    message = "expected a --process_index below --num_processes"
    assert_one_line_error(done, message, status=2)
    done = command(
        "mnist",
        "--coordinator_address=localhost:99999",
        *PROCESSES[:1],
        "--process_index=0",
    )
    assert_one_line_error(done, "--coordinator_address: expected host:port of process")
    image = f"--image={tmp_path}/7.png"
    done = command("predict", f"--workdir={tmp_path}", image, "--split=train")
    assert_one_line_error(done, "--split: expected it with --index alone, got it with")


@pytest.mark.parametrize("name", ["mnist", "predict", "gates", "draw"])
def test_a_mistyped_manual_dir_is_refused_first(name, tmp_path):
    """Also where the data is prepared, or the model was trained on digits."""
    done = command(name, f"--workdir={tmp_path}/none", "--manual_dir=/none")
    assert_one_line_error(done, "--manual_dir: expected a folder, got /none")
    assert not list(tmp_path.iterdir())
