"""What a command answers to what it can't do, in the command line's own words."""

import pytest
from commands import assert_one_line_error, command

from experiments.devices import require_rows
from experiments.errors import RunError, within_memory

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


@pytest.mark.slow
def test_too_little_memory_is_one_line(tmp_path):
    """A million units a layer, of whose weights one gate has four terabytes."""
    flags = "--hidden_size=1000000", f"--workdir={tmp_path}"
    done = command("mnist", "--dataset=digits", *flags)
    assert_one_line_error(done, "a smaller --batch_size or --hidden_size may help")
    assert "mnist: out of memory (" in done.stderr


@pytest.mark.parametrize(
    "error", [MemoryError("4 TB"), RuntimeError("RESOURCE_EXHAUSTED: 4 TB\nof 2 TB")]
)
def test_what_memory_was_wanted_for_is_told(error):
    with pytest.raises(RunError, match=r"^out of memory \(.*4 TB\); ask for less$"):  # noqa: SIM117
        with within_memory("ask for less"):
            raise error
    with pytest.raises(RuntimeError, match=r"^another$"), within_memory("ask for less"):
        raise RuntimeError("another")


def test_a_warning_is_one_line_and_a_checkpoint_is_told_from_its_run(tmp_path):
    flags = "--num_epochs=1", "--hidden_size=8", "--num_layers=1", "--dropout=0.5"
    done = command("mnist", "--dataset=digits", f"--workdir={tmp_path}", *flags)
    assert done.returncode == 0, done.stderr
    expected = "python -m experiments.mnist: note: dropout: it is applied after every"
    assert done.stderr.startswith(expected)
    assert done.stderr.count("\n") == 1
    done = command("predict", f"--workdir={tmp_path}/15")
    assert_one_line_error(done, f"it is itself that of step 15 in {tmp_path}")
