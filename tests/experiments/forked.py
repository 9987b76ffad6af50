"""Commands as processes of their own that have other people's imports behind them.

A process that has imported those, and nothing of this project, waits; of it each
command is a fork, which runs the module as `python -m` does. So a test pays for what
it is about, not for seconds of imports; the project's own are every fork's.
"""

import functools
import json
import os
import pathlib
import runpy
import signal
import subprocess
import sys
import tempfile
import warnings

# What most commands import. None starts threads that a fork would miss; JAX's come
# with its devices.
_IMPORTS = """
    absl.app flax.linen jax matplotlib.backends.backend_agg matplotlib.figure optax
    orbax.checkpoint PIL.Image safetensors sklearn.datasets tqdm
"""


_MOST_SECONDS = 600


def read_by_jax():
    """The variables that JAX reads when it is imported."""
    return {k: v for k, v in os.environ.items() if k.startswith("JAX")}


@functools.cache
def read_at_first():
    """Those of before the first test, which may change them for what it starts."""
    return read_by_jax()


def is_as_new():
    """Whether a fork would be what a new process is."""
    return read_by_jax() == read_at_first()


def run(module, *flags):
    """As `subprocess.run` of `python -m experiments.MODULE`, its output as text."""
    server = _server()
    with tempfile.TemporaryDirectory() as folder:
        files = [os.path.join(folder, name) for name in ("stdout", "stderr")]
        at = os.getcwd(), dict(os.environ)
        request = [f"experiments.{module}", flags, *files, *at]
        server.stdin.write(json.dumps(request) + "\n")
        server.stdin.flush()
        status = int(server.stdout.readline())
        out, errors = (pathlib.Path(file).read_text("utf-8") for file in files)
    return subprocess.CompletedProcess([module, *flags], status, out, errors)


@functools.cache
def _server():
    others = {k: v for k, v in os.environ.items() if k not in read_by_jax()}
    return subprocess.Popen(
        [sys.executable, __file__],
        env=others | read_at_first(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def _serve():
    """Ends with the tests, whose end closes stdin."""
    for name in _IMPORTS.split():
        __import__(name)
    # Of folders like `python -m`, which puts the working directory there.
    sys.path[0] = ""
    for line in sys.stdin:
        request = json.loads(line)
        with warnings.catch_warnings():
            # JAX's, which does not know that it has no threads yet.
            warnings.filterwarnings("ignore", message=r"os.fork\(\) was called")
            child = os.fork()
        if child == 0:
            return _become(*request)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


def _become(module, flags, stdout, stderr, folder, environment):
    signal.alarm(_MOST_SECONDS)  # Nobody who waits for it would end otherwise.
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    for number, file in enumerate([os.devnull, stdout, stderr]):
        opened = os.open(file, os.O_RDWR | os.O_CREAT)
        os.dup2(opened, number)
        os.close(opened)
    sys.argv[1:] = flags
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    _serve()
