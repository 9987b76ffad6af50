"""Too little memory: one line that says for what."""

import jax
import numpy as np
import pytest
from commands import assert_one_line_error, command

from experiments.data import digits
from experiments.errors import RunError, within_memory
from experiments.hyper_parameters import HyperParameters

_MNIST_SHAPE = (28, 28)


@pytest.mark.slow
def test_too_little_memory_is_one_line(tmp_path):
    flags = "--batch_size=100000000", f"--workdir={tmp_path}"
    done = command("mnist", "--dataset=digits", *flags)
    assert_one_line_error(done, "a smaller --batch_size, --hidden_size or --num_layers")
    assert "mnist: out of memory (" in done.stderr


@pytest.mark.parametrize("flag", ["hidden_size", "num_layers"])
def test_weights_beyond_memory_are_refused_first(flag, tmp_path):
    """Linux grants the memory, and kills the process that comes to use it."""
    workdir = tmp_path / "new"
    flags = f"--{flag}=2147483647", f"--workdir={workdir}"
    done = command("mnist", "--dataset=digits", *flags)
    message = "mnist: out of memory ("
    assert_one_line_error(done, message)
    assert "GiB for the weights" in done.stderr
    assert not workdir.exists()


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_weights_in_memory_are_those_of_the_model(cell, bidirectional):
    parameters = HyperParameters(
        cell=cell, bidirectional=bidirectional, hidden_size=32, num_layers=3
    )
    model = parameters.model(digits.load())
    rows = jax.ShapeDtypeStruct((1, *_MNIST_SHAPE), np.float32)
    model = model.clone(input_size=_MNIST_SHAPE[-1])
    params = jax.eval_shape(model.init, jax.random.key(0), rows)["params"]
    matrices = [leaf for leaf in jax.tree.leaves(params[model.cell]) if leaf.ndim == 2]
    assert parameters.weights_bytes == 4 * 4 * sum(leaf.size for leaf in matrices)


@pytest.mark.parametrize(
    "error", [MemoryError("4 TB"), RuntimeError("RESOURCE_EXHAUSTED: 4 TB\nof 2 TB")]
)
def test_what_memory_was_wanted_for_is_told(error):
    with pytest.raises(RunError, match=r"^out of memory \(MemoryError\); ask"):  # noqa: SIM117
        with within_memory("ask for less"):
            raise MemoryError
    with pytest.raises(RunError, match=r"^out of memory \(.*4 TB\); ask for less$"):  # noqa: SIM117
        with within_memory("ask for less"):
            raise error
    full_disk = RunError("saving failed: RESOURCE_EXHAUSTED: No space left on device")
    with pytest.raises(RunError, match=r"^saving failed"):  # noqa: SIM117
        with within_memory("ask for less"):
            raise full_disk
    with pytest.raises(RuntimeError, match=r"^another$"), within_memory("ask for less"):
        raise RuntimeError("another")
