"""One whole run on the embedded digits, which several files look at."""

import signal

import forked
import pytest
from commands import command_anew, train


@pytest.fixture(scope="session", autouse=True)
def ctrl_c():
    """A shell's background job ignores Ctrl-C, and so would every process it starts."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def environment():
    """What forks have; tests/conftest.py has changed it since this file was read."""
    forked.read_at_first()


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """Workdir of 20 epochs with dropout, and what the command printed."""
    workdir = tmp_path_factory.mktemp("run") / "digits"
    flags = ("--num_epochs=20", "--dropout=0.1")
    return workdir, train(workdir, *flags, by=command_anew)
