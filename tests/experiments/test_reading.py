"""The reading of one image, against the model and against the equations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy_stack import run, sigmoid

from experiments.errors import RunError
from experiments.reading import LayerTrace, read
from flax_lstm import LSTMClassifier, StackedLSTM

WHITE = 255
MODELS = {
    "two layers": {},
    "all options": {"bidirectional": True, "proj_size": 3, "bias": False},
}


@pytest.fixture(params=MODELS.values(), ids=MODELS)
def example(request):
    model = LSTMClassifier(input_size=5, hidden_size=7, **request.param)
    image = np.random.default_rng(0).integers(0, WHITE + 1, (6, 5), np.uint8)
    # Larger than they are drawn, so that gates are not all about a half.
    drawn = jax.jit(model.init)(jax.random.key(0), image[None] / WHITE)
    variables = jax.tree.map(lambda p: 3 * p, drawn)
    return model, variables, image


def test_reading_agrees_with_the_model_and_the_equations(example):
    model, variables, image = example
    reading = read(model, variables, image, WHITE)
    inputs = (image / WHITE).astype(np.float32)

    # float32 sums of 7 products in another order: some 1e-7.
    close = {"rtol": 0, "atol": 2e-6}
    logits = model.apply(variables, inputs[None])[0]
    np.testing.assert_allclose(
        reading.probabilities[-1], jax.nn.softmax(logits), **close
    )
    params = variables["params"]["lstm"]
    stack = StackedLSTM(
        model.input_size,
        model.hidden_size,
        model.num_layers,
        bias=model.bias,
        bidirectional=model.bidirectional,
        proj_size=model.proj_size,
    )
    _, (_, c_n) = stack.apply({"params": params}, inputs)
    assert [layer.name for layer in reading.layers] == list(params)
    for layer, c in zip(reading.layers, c_n, strict=True):
        last = 0 if layer.name.endswith("_reverse") else -1
        np.testing.assert_allclose(layer.c[last], c, **close)

    np.testing.assert_allclose(
        reading.probabilities, answers_to_prefixes(model, variables, inputs), **close
    )
    x = inputs
    for layer in range(model.num_layers):
        traces = [t for t in reading.layers if t.name.startswith(f"layer_{layer}")]
        outputs = [follow(params[trace.name], x, trace, close) for trace in traces]
        x = np.concatenate(outputs, axis=-1)


def answers_to_prefixes(model, variables, inputs):
    params = jax.tree.map(np.float64, variables["params"])
    rows = len(inputs)
    states = model.num_layers * (2 if model.bidirectional else 1)
    hx = [
        np.zeros((states, rows, size))
        for size in (model.proj_size or model.hidden_size, model.hidden_size)
    ]
    prefixes = np.repeat(inputs[:, None].astype(np.float64), rows, axis=1)
    lengths = range(1, rows + 1)
    output, _ = run("lstm", params["lstm"], prefixes, hx, lengths)
    last = np.stack([output[length - 1, row] for row, length in enumerate(lengths)])
    logits = last @ params["head"]["kernel"] + params["head"]["bias"]
    powers = np.exp(logits)
    return powers / powers.sum(axis=-1, keepdims=True)


def follow(params, x, trace, close):
    """Compares each row's gates with NumPy's; the layer's output (T, P)."""
    cell = jax.tree.map(np.float64, params)
    h = np.zeros(cell["hi"]["kernel"].shape[0])
    c = np.zeros(cell["hi"]["kernel"].shape[1])
    rows = range(len(x))
    output = np.zeros((len(x), len(h)))
    for row in reversed(rows) if trace.name.endswith("_reverse") else rows:
        product = {
            gate: x[row] @ cell[f"i{gate}"]["kernel"]
            + h @ cell[f"h{gate}"]["kernel"]
            + cell[f"h{gate}"].get("bias", 0)
            for gate in "ifgo"
        }
        i, f, o = (sigmoid(product[gate]) for gate in "ifo")
        c = f * c + i * np.tanh(product["g"])
        h = o * np.tanh(c)
        h = h @ cell["hr"]["kernel"] if "hr" in cell else h
        for name, value in {"i": i, "f": f, "o": o, "c": c}.items():
            np.testing.assert_allclose(getattr(trace, name)[row], value, **close)
        output[row] = h
    return output


@pytest.mark.parametrize("pooling", ["mean", "attention"])
def test_the_answers_so_far_with_another_pooling(pooling):
    model = LSTMClassifier(input_size=5, hidden_size=7, num_layers=1, pooling=pooling)
    image = np.random.default_rng(0).integers(0, WHITE + 1, (6, 5), np.uint8)
    inputs = image[None].astype(np.float32) / WHITE
    variables = jax.jit(model.init)(jax.random.key(0), inputs)
    probabilities = read(model, variables, image, WHITE).probabilities
    for rows in (2, 6):
        logits = model.apply(variables, inputs[:, :rows])[0]
        # Sums of float32 in another order.
        np.testing.assert_allclose(
            probabilities[rows - 1], jax.nn.softmax(logits), rtol=0, atol=2e-6
        )


def test_a_model_in_bfloat16_is_read_in_bfloat16():
    options = {"dtype": jnp.bfloat16, "implementation": "scan"}
    model = LSTMClassifier(input_size=5, hidden_size=7, **options)
    image = np.random.default_rng(0).integers(0, WHITE + 1, (6, 5), np.uint8)
    inputs = image.astype(np.float32) / WHITE
    drawn = jax.jit(model.init)(jax.random.key(0), inputs[None])
    variables = jax.tree.map(lambda p: 3 * p, drawn)
    stack = StackedLSTM(5, 7, model.num_layers, **options)
    _, (_, c_n) = stack.apply({"params": variables["params"]["lstm"]}, inputs)
    for layer, c in zip(read(model, variables, image, WHITE).layers, c_n, strict=True):
        # The same products, of which each has but 8 bits; in float32 it is 4e-3 off.
        np.testing.assert_allclose(layer.c[-1], c, rtol=0, atol=2e-6)


def test_units_come_in_the_order_of_their_largest_state_of_either_sign():
    c = np.array([[0, -3, 1], [2, 1, 1], [0, 2, 0]])
    assert LayerTrace("layer_0", c, c, c, c).units_by_peak().tolist() == [1, 2, 0]


def test_a_model_without_these_gates_is_refused():
    with pytest.raises(RunError, match="--workdir: expected a run of an LSTM"):
        read(StackedLSTM(5, 7), {}, np.zeros((6, 5), np.uint8), WHITE)
