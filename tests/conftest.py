"""What every test runs under: eight CPU devices, exact products, fixed examples.

And the least optimised code that XLA:CPU makes, unless XLA_FLAGS is set (with
`--xla_backend_optimization_level=3`, its default, the code is a user's; `.ci/run` runs
some so, too): what is checked is the formulas, and compiling takes most of the time.
Processes that a test starts train for some seconds: their code is optimised, but by the
cheap passes only.
"""

import gc
import os
import pathlib

import compiled_loops
import hypothesis
import jax
import pytest
from kinds import KINDS, Variant, lay_out_as_elsewhere, lay_out_as_if_large

_XLA_FLAGS = "XLA_FLAGS"
_CHEAPLY_OPTIMISED = [
    "--xla_llvm_disable_expensive_passes=true",
    "--xla_cpu_parallel_codegen_split_count=1",
]
if jax.__version_info__ < (0, 11):  # Which has no other way any more.
    _CHEAPLY_OPTIMISED.append("--xla_cpu_use_fusion_emitters=false")

_LEAST_OPTIMISED = ["--xla_backend_optimization_level=0", *_CHEAPLY_OPTIMISED]

# Before the first array: later, the number of devices cannot change. It is the
# number of CPU devices only, and does nothing to an accelerator's.
jax.config.update("jax_num_cpu_devices", 8)
_OF_PROCESSES = " ".join(_CHEAPLY_OPTIMISED)
# xdist's workers have the flags of the process that started them.
if os.environ.get(_XLA_FLAGS, _OF_PROCESSES) == _OF_PROCESSES:
    os.environ[_XLA_FLAGS] = " ".join(_LEAST_OPTIMISED)
    jax.devices()  # Which reads them.
    os.environ[_XLA_FLAGS] = _OF_PROCESSES
# Processes that tests start find what one before compiled, to the same bits; what a
# test compiles itself is its own.
os.environ |= {
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
}
jax.config.update("jax_enable_compilation_cache", False)
# An accelerator's default (TF32, bfloat16 passes) is off by 1e-3; the tolerances
# in these tests are those of the dtype.
jax.config.update("jax_default_matmul_precision", "highest")

# No deadline: an example's first call compiles. The same examples on every run.
hypothesis.settings.register_profile(
    "flax_lstm", deadline=None, derandomize=True, max_examples=40
)
hypothesis.settings.load_profile("flax_lstm")


# Tracing makes many objects that live on: looking for cycles among them at Python's
# usual rate is up to a tenth of the tests' time.
gc.set_threshold(50_000, 50, 100)


LSTM_RECURRENCES = {
    "scan": {"implementation": "scan"},
    "fused": {"implementation": "fused"},
    "scan_remat": {"implementation": "scan", "remat": True},
    "fused_remat": {"implementation": "fused", "remat": True},
    "native": {"implementation": "native"},
    "native_remat": {"implementation": "native", "remat": True},
}
VARIANTS = {name: Variant("lstm", way) for name, way in LSTM_RECURRENCES.items()}
for name, lay_out in (
    ("fused_large", lay_out_as_if_large),
    ("fused_elsewhere", lay_out_as_elsewhere),
):
    VARIANTS[name] = Variant("lstm", LSTM_RECURRENCES["fused"], lay_out)
VARIANTS |= {kind: Variant(kind, {}) for kind in KINDS if kind != "lstm"}
# Compiling a stretch twice takes its time; the default run has `remat` in the Python
# loop's examples and in test_fused. What the cells and the fused layouts differ in, the
# loop's examples and the parity with torch show; that the transformations leave it
# alone is slow.
DEFAULT = ("scan", "fused", "native")


def pytest_configure(config):
    # A worker of xdist's has the result of the process that started it.
    if not hasattr(config, "workerinput") and not config.option.collectonly:
        root = compiled_loops.compile_for_all(kept_between_runs(config))
        # JAX 0.10.0 complains, on stderr, of the processor that its own code is for.
        if jax.__version_info__ > (0, 10, 0):
            os.environ["JAX_COMPILATION_CACHE_DIR"] = str(root / "programs")


def kept_between_runs(config):
    """A folder in pytest's cache, or None where that can't be had."""
    if not hasattr(config, "cache"):  # With `-p no:cacheprovider`.
        return None
    try:
        return config.cache.mkdir("native") / "loops"
    except OSError:  # A checkout that can't be written to.
        return None


def pytest_unconfigure(config):
    if not hasattr(config, "workerinput"):
        compiled_loops.remove()


# Every compiled program is some mappings of memory, of which Linux gives a process
# 65,530; compiling one more ends it. Programs of thousands of tests are more.
_MOST_MAPPINGS = 15_000
_MAPPINGS = pathlib.Path("/proc/self/maps")


def pytest_runtest_teardown():
    if _MAPPINGS.exists() and _MAPPINGS.read_bytes().count(b"\n") > _MOST_MAPPINGS:
        jax.clear_caches()
        gc.collect()


@pytest.fixture(scope="session")
def native():
    """`implementation='native'` can be used; else the test is skipped, saying why."""
    compiled_loops.load()


@pytest.fixture(
    params=[
        pytest.param(v, id=name, marks=() if name in DEFAULT else pytest.mark.slow)
        for name, v in VARIANTS.items()
    ]
)
def variant(request, monkeypatch):
    """Each kind of stack, and each way to run it over time."""
    if request.param.lay_out:
        request.param.lay_out(monkeypatch)
    if request.param.recurrence.get("implementation") == "native":
        if "x64" in request.fixturenames:
            pytest.skip("implementation='native' is float32; see test_native.py")
        request.getfixturevalue("native")
    return request.param


@pytest.fixture
def default_device_cpu():
    """Has JAX run on a CPU what no device was chosen for."""
    with jax.default_device(jax.devices("cpu")[0]):
        yield


@pytest.fixture
def x64():
    """float64 in JAX for the length of one test."""
    with jax.enable_x64(True):
        yield
