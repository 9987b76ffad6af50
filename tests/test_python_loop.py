"""`StackedLSTM` against a plain Python loop over the equations, in float64."""

import hypothesis.strategies as st
import jax
import numpy as np
import numpy_lstm
import pytest
from hypothesis import given, settings

from flax_lstm import StackedLSTM

# Values and sums here are of order 1 to 10 and float64 rounds at 1e-16: what is
# left is the order of some dozen additions.
TOLERANCE = 1e-12


@st.composite
def runs(draw, directions=(False, True)):
    """A module, its weights, an input, a state and lengths; (T, B, ·) all."""
    steps, batch = draw(st.integers(1, 6)), draw(st.integers(1, 4))
    hidden = draw(st.integers(1, 5))
    options = {
        "input_size": draw(st.integers(1, 4)),
        "hidden_size": hidden,
        "num_layers": draw(st.integers(1, 2)),
        "bias": draw(st.booleans()),
        "bidirectional": draw(st.sampled_from(directions)),
        "proj_size": draw(st.integers(0, hidden - 1)),
        "implementation": draw(st.sampled_from(sorted(StackedLSTM.implementations))),
        "remat": draw(st.booleans()),
    }
    lengths = np.array(
        draw(st.lists(st.integers(0, steps), min_size=batch, max_size=batch))
    )
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    return options, steps, lengths, rng


def build(options, steps, lengths, rng):
    lstm = StackedLSTM(**options)
    batch = len(lengths)
    x = rng.standard_normal((steps, batch, options["input_size"]))
    rows = options["num_layers"] * (2 if options["bidirectional"] else 1)
    width = options["proj_size"] or options["hidden_size"]
    hx = (
        rng.standard_normal((rows, batch, width)),
        rng.standard_normal((rows, batch, options["hidden_size"])),
    )
    shapes = jax.eval_shape(lstm.init, jax.random.key(0), x)["params"]
    params = jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape), shapes)
    return lstm, params, x, hx


def assert_same(got, expected):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=TOLERANCE),
        got,
        expected,
    )


# Each example compiles anew, which takes half a second.
@settings(max_examples=12)
@given(runs())
def test_any_sizes_options_states_and_lengths(run):
    with jax.enable_x64(True):
        lstm, params, x, hx = build(*run)
        lengths = run[2]
        expected = numpy_lstm.lstm(params, x, hx, lengths)
        padded = np.where((np.arange(len(x))[:, None] < lengths)[..., None], x, np.nan)
        assert_same(
            lstm.apply({"params": params}, padded, hx, seq_lengths=lengths), expected
        )


@settings(max_examples=5)
@given(runs())
def test_no_state_is_zeros_and_no_lengths_is_all_steps(run):
    with jax.enable_x64(True):
        lstm, params, x, hx = build(*run)
        zeros = jax.tree.map(np.zeros_like, hx)
        expected = numpy_lstm.lstm(params, x, zeros, [len(x)] * x.shape[1])
        assert_same(lstm.apply({"params": params}, x), expected)


@settings(max_examples=5)
@given(runs(directions=[False]), st.data())
def test_two_chunks_that_hand_on_the_state_are_the_whole(run, data):
    with jax.enable_x64(True):
        lstm, params, x, hx = build(*run)
        cut = data.draw(st.integers(1, max(1, len(x) - 1)))
        whole, state_of_whole = lstm.apply({"params": params}, x, hx)
        outputs, state = [], hx
        for chunk in (x[:cut], x[cut:]):
            if len(chunk):
                output, state = lstm.apply({"params": params}, chunk, state)
                outputs.append(output)
        assert_same(np.concatenate(outputs), whole)
        assert_same(state, state_of_whole)


@pytest.mark.parametrize("proj_size", [0, 2])
@pytest.mark.parametrize("num_layers", [1, 2])
def test_one_step_at_a_time_is_the_whole(num_layers, proj_size, recurrence, x64):
    options = {
        "input_size": 3,
        "hidden_size": 4,
        "num_layers": num_layers,
        "bias": True,
        "bidirectional": False,
        "proj_size": proj_size,
        **recurrence,
    }
    lengths = np.array([7, 7])
    lstm, params, x, hx = build(options, 7, lengths, np.random.default_rng(0))
    expected = numpy_lstm.lstm(params, x, hx, lengths)
    step = jax.jit(lambda x, hx: lstm.apply({"params": params}, x[None], hx))
    outputs, state = [], hx
    for x_t in x:
        output, state = step(x_t, state)
        outputs.append(output)
    assert_same((np.concatenate(outputs), state), expected)


def test_chunks_with_lengths_that_end_in_the_first_hand_on_the_state(recurrence, x64):
    """A stream's row that has ended gets length 0 and keeps its state."""
    options = {
        "input_size": 3,
        "hidden_size": 4,
        "num_layers": 2,
        "bias": True,
        "bidirectional": False,
        "proj_size": 2,
        **recurrence,
    }
    lengths = np.array([2, 6, 4, 0])
    lstm, params, x, hx = build(options, 6, lengths, np.random.default_rng(0))
    expected = numpy_lstm.lstm(params, x, hx, lengths)
    outputs, state = [], hx
    for start in (0, 3):
        output, state = lstm.apply(
            {"params": params},
            x[start : start + 3],
            state,
            seq_lengths=np.clip(lengths - start, 0, 3),
        )
        outputs.append(output)
    assert_same((np.concatenate(outputs), state), expected)


@pytest.mark.parametrize("bidirectional", [False, True])
def test_length_zero_returns_the_initial_state_bit_for_bit(bidirectional, recurrence):
    lstm = StackedLSTM(3, 4, 2, bidirectional=bidirectional, **recurrence)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((5, 2, 3)).astype(np.float32)
    rows = 4 if bidirectional else 2
    h_0, c_0 = rng.standard_normal((2, rows, 2, 4)).astype(np.float32)
    variables = lstm.init(jax.random.key(0), x)
    output, (h_n, c_n) = lstm.apply(
        variables, x, (h_0, c_0), seq_lengths=np.array([0, 5])
    )
    np.testing.assert_array_equal(output[:, 0], 0)
    np.testing.assert_array_equal(h_n[:, 0], h_0[:, 0])
    np.testing.assert_array_equal(c_n[:, 0], c_0[:, 0])
