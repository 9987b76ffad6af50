"""The stacks against a plain Python loop over the equations, in float64."""

import hypothesis.strategies as st
import jax
import numpy as np
import numpy_stack
import pytest
from hypothesis import given, settings
from kinds import KINDS, packed, unpacked

# Values and sums here are of order 1 to 10 and float64 rounds at 1e-16: what is
# left is the order of some dozen additions.
TOLERANCE = 1e-12


# One is drawn for each example.
OTHERS = sorted(set(KINDS) - {"lstm"})
DRAWN_FROM = [
    pytest.param(["lstm"], id="lstm"),
    pytest.param(OTHERS, id="gru_or_rnn"),
]
# Where the cell has less to do with it.
DRAWN_FROM_LSTM_FIRST = [
    pytest.param(["lstm"], id="lstm"),
    pytest.param(OTHERS, id="gru_or_rnn", marks=pytest.mark.slow),
]


@st.composite
def runs(draw, kinds, directions=(False, True)):
    """A kind, its options, the number of steps, lengths, and a generator."""
    kind = draw(st.sampled_from(kinds))
    steps, batch = draw(st.integers(1, 6)), draw(st.integers(1, 4))
    hidden = draw(st.integers(1, 5))
    options = {
        "input_size": draw(st.integers(1, 4)),
        "hidden_size": hidden,
        "num_layers": draw(st.integers(1, 2)),
        "bias": draw(st.booleans()),
        "bidirectional": draw(st.sampled_from(directions)),
        "implementation": draw(st.sampled_from(sorted(KINDS[kind].implementations))),
        "remat": draw(st.booleans()),
    }
    if kind == "lstm":
        options["proj_size"] = draw(st.integers(0, hidden - 1))
    lengths = np.array(
        draw(st.lists(st.integers(0, steps), min_size=batch, max_size=batch))
    )
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    return kind, options, steps, lengths, rng


def build(kind, options, steps, lengths, rng):
    """A module, its weights, an input and a tuple of states; (T, B, ·) all."""
    stack = KINDS[kind].build(**options)
    batch = len(lengths)
    x = rng.standard_normal((steps, batch, stack.input_size))
    rows = stack.num_layers * (2 if stack.bidirectional else 1)
    states = tuple(
        rng.standard_normal((rows, batch, size)) for size in stack.state_sizes
    )
    shapes = jax.eval_shape(stack.init, jax.random.key(0), x)["params"]
    params = jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape), shapes)
    return stack, params, x, states


def applied(stack, params, x, states=None, **arguments):
    """The output and a tuple of the final states."""
    hx = None if states is None else packed(states)
    output, state = stack.apply({"params": params}, x, hx, **arguments)
    return output, unpacked(state)


def assert_same(got, expected):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=TOLERANCE),
        got,
        expected,
    )


# Each example compiles anew, which takes half a second.
@pytest.mark.parametrize("kinds", DRAWN_FROM)
@settings(max_examples=12)
@given(data=st.data())
def test_any_sizes_options_states_and_lengths(kinds, data):
    kind, options, steps, lengths, rng = data.draw(runs(kinds))
    with jax.enable_x64(True):
        stack, params, x, states = build(kind, options, steps, lengths, rng)
        expected = numpy_stack.run(kind, params, x, states, lengths)
        padded = np.where((np.arange(len(x))[:, None] < lengths)[..., None], x, np.nan)
        assert_same(
            applied(stack, params, padded, states, seq_lengths=lengths), expected
        )


@pytest.mark.parametrize("kinds", DRAWN_FROM_LSTM_FIRST)
@settings(max_examples=5)
@given(data=st.data())
def test_no_state_is_zeros_and_no_lengths_is_all_steps(kinds, data):
    kind, *run = data.draw(runs(kinds))
    with jax.enable_x64(True):
        stack, params, x, states = build(kind, *run)
        zeros = jax.tree.map(np.zeros_like, states)
        expected = numpy_stack.run(kind, params, x, zeros, [len(x)] * x.shape[1])
        assert_same(applied(stack, params, x), expected)


@pytest.mark.parametrize("kinds", DRAWN_FROM_LSTM_FIRST)
@settings(max_examples=5)
@given(data=st.data())
def test_two_chunks_that_hand_on_the_state_are_the_whole(kinds, data):
    with jax.enable_x64(True):
        stack, params, x, state = build(*data.draw(runs(kinds, directions=[False])))
        cut = data.draw(st.integers(1, max(1, len(x) - 1)))
        whole, state_of_whole = applied(stack, params, x, state)
        outputs = []
        for chunk in (x[:cut], x[cut:]):
            if len(chunk):
                output, state = applied(stack, params, chunk, state)
                outputs.append(output)
        assert_same(np.concatenate(outputs), whole)
        assert_same(state, state_of_whole)


@pytest.mark.parametrize("proj_size", [0, 2])
@pytest.mark.parametrize("num_layers", [1, 2])
def test_one_step_at_a_time_is_the_whole(num_layers, proj_size, variant, x64):
    kind, recurrence, _ = variant
    options = {"input_size": 3, "hidden_size": 4, "num_layers": num_layers}
    options |= variant.projection(proj_size) | recurrence
    lengths = np.array([7, 7])
    rng = np.random.default_rng(0)
    stack, params, x, state = build(kind, options, 7, lengths, rng)
    expected = numpy_stack.run(kind, params, x, state, lengths)
    step = jax.jit(lambda x, state: applied(stack, params, x[None], state))
    outputs = []
    for x_t in x:
        output, state = step(x_t, state)
        outputs.append(output)
    assert_same((np.concatenate(outputs), state), expected)


def test_chunks_with_lengths_that_end_in_the_first_hand_on_the_state(variant, x64):
    """A stream's row that has ended gets length 0 and keeps its state."""
    kind, recurrence, _ = variant
    options = {"input_size": 3, "hidden_size": 4, "num_layers": 2}
    options |= variant.projection(2) | recurrence
    lengths = np.array([2, 6, 4, 0])
    rng = np.random.default_rng(0)
    stack, params, x, state = build(kind, options, 6, lengths, rng)
    expected = numpy_stack.run(kind, params, x, state, lengths)
    outputs = []
    for start in (0, 3):
        output, state = applied(
            stack,
            params,
            x[start : start + 3],
            state,
            seq_lengths=np.clip(lengths - start, 0, 3),
        )
        outputs.append(output)
    assert_same((np.concatenate(outputs), state), expected)


@pytest.mark.parametrize("bidirectional", [False, True])
def test_length_zero_returns_the_initial_state_bit_for_bit(bidirectional, variant):
    stack = variant.build(3, 4, 2, bidirectional=bidirectional)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((5, 2, 3)).astype(np.float32)
    rows = 4 if bidirectional else 2
    states = [
        rng.standard_normal((rows, 2, size)).astype(np.float32)
        for size in stack.state_sizes
    ]
    variables = stack.init(jax.random.key(0), x)
    output, final = applied(
        stack, variables["params"], x, states, seq_lengths=np.array([0, 5])
    )
    np.testing.assert_array_equal(output[:, 0], 0)
    for last, first in zip(final, states, strict=True):
        np.testing.assert_array_equal(last[:, 0], first[:, 0])
