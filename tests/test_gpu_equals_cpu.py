"""A GPU computes what a CPU does, at the notes' sizes; needs an NVIDIA GPU."""

from functools import partial
from typing import NamedTuple

import compiled_loops
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flax_lstm import StackedLSTM
from flax_lstm.native import library

T, I, H = 28, 28, 128  # noqa: E741
# Times the largest entry; a gradient here sums up to 28,000 terms.
TOLERANCE = 1e-5

GPUS = [device for device in jax.devices() if device.platform == "gpu"]
pytestmark = pytest.mark.skipif(not GPUS, reason="needs an NVIDIA GPU")


class Case(NamedTuple):
    """A batch, what is computed of it, and by which stack."""

    batch: int
    gradients: bool
    bidirectional: bool = False
    lengths: bool = False


CASES = {
    "inference": Case(100, gradients=False),
    "inference_of_one": Case(1, gradients=False),
    "training": Case(100, gradients=True),
    "training_on_one": Case(1, gradients=True),
    # No whole number of any kernel's rows.
    "training_on_many": Case(997, gradients=True),
    "two_directions_and_lengths": Case(
        100, gradients=True, bidirectional=True, lengths=True
    ),
}


def loss(lstm, lengths, variables, x):
    y, (h, c) = lstm.apply(variables, x, seq_lengths=lengths)
    return jnp.sin(y).mean() + (h * c).mean(), (y, h, c)


def last_result(compiled, arguments):
    """Of a program that XLA records as a CUDA graph at its second call.

    Then it is replayed, and at last recorded anew, for arguments at other addresses.
    """
    for _ in range(3):
        kept = compiled(*arguments)
    result = compiled(*jax.tree.map(jnp.copy, arguments))
    del kept  # Until here the result had to be elsewhere, too.
    return result


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
# 'auto' is 'fused' on a GPU, whose programs take longest to compile.
@pytest.mark.parametrize("implementation", ["scan", "fused", "cudnn", "native"])
def test_results_are_the_cpus(implementation, case, monkeypatch):
    if implementation == "native":
        monkeypatch.setenv("FLAX_LSTM_CACHE_DIR", compiled_loops.directory())
        if not library.GPU.is_usable():
            pytest.skip("needs the kernels, which nvcc compiles")
    build = partial(StackedLSTM, I, H, 2, bidirectional=case.bidirectional)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((T, case.batch, I)).astype(np.float32)
    lengths = rng.integers(0, T + 1, case.batch) if case.lengths else None

    def run(device, implementation):
        lstm = build(implementation=implementation)
        of = partial(loss, lstm, lengths)
        if case.gradients:
            of = jax.value_and_grad(of, (0, 1), has_aux=True)
        arguments = jax.device_put((variables, x), device)
        lowered = jax.jit(of).lower(*arguments)
        return lowered.as_text(), last_result(lowered.compile(), arguments)

    cpu = jax.devices("cpu")[0]
    with jax.default_device(cpu), jax.default_matmul_precision("highest"):
        variables = build().init(jax.random.key(0), x)
        _, expected = run(cpu, "scan")
    with jax.default_device(GPUS[0]), jax.default_matmul_precision("highest"):
        text, got = run(GPUS[0], implementation)
    called = {"cudnn": "@cudnn_rnn", "native": "@flax_lstm_persistent_"}
    assert called.get(implementation, "") in text

    def check(got, expected):
        bound = TOLERANCE * np.abs(expected).max()
        np.testing.assert_allclose(got, expected, rtol=0, atol=bound)

    jax.tree.map(check, got, expected)
