"""What `import flax_lstm` makes its user wait for."""

import subprocess
import sys

HEAVY = (
    "torch",
    "safetensors",
    "optax",
    "orbax",
    "tensorflow",
    "tensorflow_datasets",
    "matplotlib",
    "sklearn",
)

PROGRAM = """
import sys
import flax.linen
before = set(sys.modules)
import flax_lstm
print(*sorted(n for n in set(sys.modules) - before if "." not in n))
"""


def test_importing_the_package_brings_in_none_of_the_heavy_packages():
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True
    )
    new = done.stdout.split()
    assert "flax_lstm" in new
    assert not set(new) & set(HEAVY)
