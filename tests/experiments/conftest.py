"""A whole run on the embedded digits, and its drawing page, for several files."""

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


# in_browser is imported late: where there is no Playwright it skips who imports it.
@pytest.fixture(scope="module")
def browser():
    from in_browser import chromium

    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def url(trained):
    """Where the drawing page is served, with the model of that run."""
    from in_browser import served

    with served(trained[0]) as url:
        yield url


@pytest.fixture
def open_page(browser, url):
    """Opens the drawing page as a device has it; what goes wrong in it fails."""
    from in_browser import opening

    with opening(browser, url) as open_:
        yield open_
