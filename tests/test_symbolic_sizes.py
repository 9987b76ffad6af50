"""`jax.export` of a model whose batch and steps have symbolic sizes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flax_lstm import GRUClassifier, LSTMClassifier, RNNClassifier

ROWS, T, I, H = 3, 4, 5, 6  # noqa: E741

CASES = {
    "fused": (LSTMClassifier, {}),
    # Weights of more than a MiB, where the fused loop looks at the batch's size.
    "wide": (LSTMClassifier, {"hidden_size": 256}),
    "scan": (LSTMClassifier, {"implementation": "scan"}),
    "bidirectional": (LSTMClassifier, {"bidirectional": True}),
    "projected": (LSTMClassifier, {"proj_size": 2}),
    "gru": (GRUClassifier, {"pooling": "mean"}),
    "rnn": (RNNClassifier, {"pooling": "attention"}),
}
# These are enough for every day: each is compiled three times.
DAILY = ("fused", "wide", "rnn")
PARAMETERS = [
    pytest.param(*case, id=name, marks=() if name in DAILY else pytest.mark.slow)
    for name, case in CASES.items()
]


def classifier(kind, **options):
    options = {"input_size": I, "hidden_size": H, "num_layers": 1, **options}
    model = kind(**options)
    return model, jax.jit(model.init)(jax.random.key(0), jnp.ones((1, T, I)))


def exported(model, variables, shape):
    def classify(x, lengths):
        return model.apply(variables, x, seq_lengths=lengths)

    b, t, features = jax.export.symbolic_shape(shape)
    return jax.export.export(jax.jit(classify), platforms=("cpu", "cuda"))(
        jax.ShapeDtypeStruct((b, t, features), jnp.float32),
        jax.ShapeDtypeStruct((b,), jnp.int32),
    )


@pytest.mark.parametrize(("kind", "options"), PARAMETERS)
def test_a_symbolic_batch_and_number_of_steps(kind, options):
    model, variables = classifier(kind, **options)
    artifact = exported(model, variables, f"b, t, {I}")
    assert artifact.platforms == ("cpu", "cuda")
    x = np.random.default_rng(0).standard_normal((ROWS, T, I), np.float32)
    lengths = np.array([T, 0, 2], np.int32)
    expected = jax.jit(model.apply)(variables, x, seq_lengths=lengths)
    # The same sums, in an order that may follow from the sizes.
    np.testing.assert_allclose(
        artifact.call(x, lengths), expected, rtol=1e-5, atol=1e-6
    )


def test_remat_needs_a_known_number_of_steps():
    model, variables = classifier(LSTMClassifier, remat=True)
    with pytest.raises(ValueError, match=r"^remat: expected a known .* the symbolic t"):
        exported(model, variables, f"b, t, {I}")
