"""What every test runs under: eight CPU devices, exact products, fixed examples."""

import hypothesis
import jax
import pytest

# Before the first array: later, the number of devices cannot change. It is the
# number of CPU devices only, and does nothing to an accelerator's.
jax.config.update("jax_num_cpu_devices", 8)
# An accelerator's default (TF32, bfloat16 passes) is off by 1e-3; the tolerances
# in these tests are those of the dtype.
jax.config.update("jax_default_matmul_precision", "highest")

# No deadline: an example's first call compiles. The same examples on every run.
hypothesis.settings.register_profile(
    "flax_lstm", deadline=None, derandomize=True, max_examples=40
)
hypothesis.settings.load_profile("flax_lstm")


# Compiling a stretch twice takes its time; the default run has `remat` in the Python
# loop's examples and in test_fused.
RECURRENCES = [
    pytest.param(options, id=name, marks=pytest.mark.slow if "remat" in options else ())
    for name, options in {
        "scan": {"implementation": "scan"},
        "fused": {"implementation": "fused"},
        "scan_remat": {"implementation": "scan", "remat": True},
        "fused_remat": {"implementation": "fused", "remat": True},
    }.items()
]


@pytest.fixture(params=RECURRENCES)
def recurrence(request):
    """Options of `StackedLSTM` for each way to run over time."""
    return request.param


@pytest.fixture
def x64():
    """float64 in JAX for the length of one test."""
    with jax.enable_x64(True):
        yield
