"""A script in a process of its own, without this one's settings."""

import os
import subprocess
import sys


def number_from(script, arguments=(), **environment):
    """The number that `script` prints, run with no setting but these."""
    settings = ("XLA", "JAX", "MALLOC_", "GLIBC_TUNABLES")
    clean = {k: v for k, v in os.environ.items() if not k.startswith(settings)}
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        env=clean | {"JAX_PLATFORMS": "cpu"} | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return int(done.stdout)
