"""Whatever is drawn, torch and we give the same result, or both refuse."""

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from kinds import KINDS, unpacked
from oracle import torch

from flax_lstm import params_from_torch

# Of torch's options; now and then out of its ranges.
OPTIONS = {
    "input_size": st.integers(1, 4),
    "hidden_size": st.sampled_from([1, 2, 3, 4, 5] * 3 + [0]),
    "num_layers": st.sampled_from([1, 2, 3] * 4 + [0]),
    "bias": st.booleans(),
    "batch_first": st.booleans(),
    "dropout": st.sampled_from([0.0] * 14 + [1.5, -0.1]),
    "bidirectional": st.booleans(),
}
OF_LSTM = {"proj_size": st.sampled_from([0, 0, 0, 0, 1, 1, 2, 5])}


@st.composite
def runs(draw, kinds):
    """A kind, options, an input that mostly fits them, and lengths or none."""
    kind = draw(st.sampled_from(kinds))
    of_kind = OF_LSTM if kind == "lstm" else {}
    options = draw(st.fixed_dictionaries(OPTIONS | of_kind))
    features = draw(st.sampled_from([options["input_size"]] * 5 + [5]))
    steps = draw(st.sampled_from([1, 2, 3, 4, 5] * 3 + [0]))
    batch = draw(st.integers(1, 4))
    leading = (batch, steps) if options["batch_first"] else (steps, batch)
    shape = draw(st.sampled_from([leading] * 5 + [(steps,), (2, *leading)]))
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    x = rng.standard_normal((*shape, features))
    lengths = None
    if len(shape) == 2 and steps and draw(st.booleans()):
        lengths = draw(st.lists(st.integers(1, steps), min_size=batch, max_size=batch))
        # torch needs one row that is as long as the input to give that length back.
        lengths[0] = steps
    return kind, options, x, lengths


def torchs(kind, options, x, lengths):
    """Weights, output and states; None if torch refuses."""
    try:
        model = KINDS[kind].build_in_torch(torch, **options).double()
        x = torch.from_numpy(x)
        if lengths is None:
            output, state = model(x)
        else:
            batch_first = options["batch_first"]
            packed = torch.nn.utils.rnn.pack_padded_sequence(
                x, lengths, batch_first, enforce_sorted=False
            )
            output, state = model(packed)
            output, _ = torch.nn.utils.rnn.pad_packed_sequence(output, batch_first)
    except (ValueError, TypeError, RuntimeError, ZeroDivisionError):
        return None
    results = output, *unpacked(state)
    return model.state_dict(), [a.detach().numpy() for a in results]


def ours(kind, options, x, lengths, weights, implementation):
    """Output and states; None if we refuse."""
    seq_lengths = None if lengths is None else jnp.asarray(lengths)
    try:
        stack = KINDS[kind].build(
            **options, implementation=implementation, param_dtype=jnp.float64
        )
        if weights is None:
            weights = stack.init(jax.random.key(0), x)
            params = weights["params"]
        else:
            params = params_from_torch(weights)
        output, state = stack.apply({"params": params}, x, seq_lengths=seq_lengths)
    except (ValueError, TypeError):
        return None
    return [output, *unpacked(state)]


def check(run, implementation):
    """Returns whether there was a result to compare."""
    expected = torchs(*run)
    weights = None if expected is None else expected[0]
    with jax.enable_x64(True):
        got = ours(*run, weights, implementation)
        assert (got is None) == (expected is None), run
        if expected is not None:
            for a, b in zip(got, expected[1], strict=True):
                np.testing.assert_allclose(a, b, rtol=0, atol=1e-10)
    return expected is not None


def check_drawn(kinds, implementation, examples):
    """Of `examples` drawn runs a sixth at least has a result."""
    compared = []

    @given(runs(kinds))
    @settings(max_examples=examples)
    def check_one(run):
        compared.append(check(run, implementation))

    check_one()
    assert sum(compared) >= examples / 6
    assert not all(compared)


OTHERS = sorted(set(KINDS) - {"lstm"})


@pytest.mark.filterwarnings("ignore:.*dropout")
@pytest.mark.parametrize(
    ("kinds", "implementation"),
    [
        pytest.param(["lstm"], "scan", id="lstm-scan"),
        pytest.param(["lstm"], "fused", id="lstm-fused"),
        pytest.param(OTHERS, "scan", id="gru_or_rnn", marks=pytest.mark.slow),
    ],
)
def test_same_result_or_both_refuse(kinds, implementation):
    check_drawn(kinds, implementation, examples=30)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*dropout")
def test_same_result_or_both_refuse_many_times():
    check_drawn(["lstm"], "fused", examples=400)
