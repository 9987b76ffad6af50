"""The experiment's commands as processes, and what a run leaves behind."""

import json
import pathlib
import subprocess
import sys

import forked
import jax
import numpy as np

from flax_lstm import load_classifier


def arguments(module, *flags):
    return [sys.executable, "-m", f"experiments.{module}", *flags]


def command(module, *flags, **options):
    """What the command printed, and its status; a fork, unless it is to be special."""
    if not options and forked.is_as_new():
        return forked.run(module, *flags)
    return command_anew(module, *flags, **options)


def command_anew(module, *flags, **options):
    """The same from a new interpreter, as a user starts it."""
    return subprocess.run(
        arguments(module, *flags),
        capture_output=True,
        text=True,
        check=False,
        **options,
    )


def training(workdir, *flags):
    return "mnist", "--dataset=digits", f"--workdir={workdir}", *flags


def train(workdir, *flags, by=command):
    done = by(*training(workdir, *flags))
    assert done.returncode == 0, done.stderr
    return done.stdout


def rows_of(workdir, *, timings=False):
    lines = (pathlib.Path(workdir) / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    return rows if timings else [{**row, "seconds": None} for row in rows]


def assert_same_run(workdir, expected):
    """Metrics (but for their timings) and parameters, to the last bit."""
    assert rows_of(workdir) == rows_of(expected)
    _, got_variables = load_classifier(workdir)
    _, variables = load_classifier(expected)
    jax.tree.map(np.testing.assert_array_equal, got_variables, variables)


def assert_one_line_error(done, message, status=1):
    assert done.returncode == status, done.stderr
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert "Traceback" not in done.stderr
