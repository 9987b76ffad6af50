"""How long importing the package takes, over importing Flax."""

import statistics
import subprocess
import sys

_SCRIPT = """
import time
import flax.linen
start = time.perf_counter()
import flax_lstm
print(time.perf_counter() - start)
"""


def import_seconds(repeats: int) -> float:
    """Median seconds of `import flax_lstm` after `import flax.linen`, afresh."""
    command = [sys.executable, "-c", _SCRIPT]

    def once() -> float:
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        return float(done.stdout)

    return statistics.median(once() for _ in range(repeats))
