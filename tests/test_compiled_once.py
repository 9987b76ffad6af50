"""What JAX keeps of a stack between calls, and what a kept program must not miss."""

import logging
import re
from collections.abc import Callable
from functools import partial
from typing import ClassVar

import compiled_loops
import flax.errors
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from beside_fused import mesh_of_cpus
from jax.sharding import NamedSharding, PartitionSpec as Spec
from kinds import KINDS, packed

from flax_lstm import (
    GRUClassifier,
    LSTMClassifier,
    StackedGRU,
    StackedLSTM,
    StackedRNN,
)
from flax_lstm._gru_cell import GRUCell
from flax_lstm._lstm_cell import LSTMCell
from flax_lstm._recurrence import scan_over_time
from flax_lstm.native import library

T, B, I, H = 4, 3, 3, 4  # noqa: E741
KEY = jax.random.key(0)
X = np.random.default_rng(0).standard_normal((T, B, I)).astype(np.float32)


@pytest.fixture
def compiled(caplog):
    """How many programs were compiled since the last call."""
    with jax.log_compiles(), caplog.at_level(logging.WARNING):

        def count():
            texts = [r.getMessage() for r in caplog.records]
            caplog.clear()
            return sum(text.startswith("Compiling ") for text in texts)

        yield count


WAYS = {
    "lstm": ("scan", "fused", "native"),
    "gru": ("scan", "native"),
    "rnn_tanh": ("auto",),
}
RUNS = [(kind, {"implementation": way}) for kind, ways in WAYS.items() for way in ways]
RUNS += [
    ("lstm", {"implementation": "fused", "remat": True}),
    ("gru", {"remat": True}),
    ("rnn_relu", {"batch_first": True}),
]


@pytest.mark.parametrize(("kind", "options"), RUNS)
def test_a_second_call_outside_of_jit_compiles_nothing(kind, options, compiled, native):
    stack = KINDS[kind].build(I, H, 2, bidirectional=True, **options)
    variables = stack.init(KEY, X)
    others = jax.tree.map(lambda leaf: leaf + 1, variables)
    rows = X.shape[0 if stack.batch_first else 1]
    hx = packed([np.ones((4, rows, size), np.float32) for size in stack.state_sizes])
    results = []
    for given, lengths in ((variables, [1, 2, 3, 2]), (others, [3, 0, 1, 3])):
        compiled()
        results.append(stack.apply(given, X, hx, seq_lengths=lengths[:rows])[0])
        programs = compiled()
        assert bool(programs) == (len(results) == 1)
    assert (results[0] != results[1]).any()


@pytest.mark.parametrize(("kind", "options"), RUNS)
def test_a_second_gradient_outside_of_jit_compiles_nothing(
    kind, options, compiled, native
):
    stack = KINDS[kind].build(I, H, 2, **options)
    variables = stack.init(KEY, X)

    def loss(variables):
        return stack.apply(variables, X)[0].sum()

    jax.grad(loss)(variables)
    assert compiled()
    jax.grad(loss)(jax.tree.map(np.ones_like, variables))
    assert not compiled()


@pytest.mark.parametrize(("kind", "options"), RUNS)
def test_a_second_init_outside_of_jit_compiles_nothing(kind, options, compiled, native):
    stack = KINDS[kind].build(I, H, 2, bidirectional=True, **options)
    output, variables = stack.init_with_output(KEY, X)
    # With every implementation, those of a scan that creates them in its first step.
    scan = KINDS[kind].build(I, H, 2, bidirectional=True, batch_first=stack.batch_first)
    expected, _ = scan.apply(variables, X)
    np.testing.assert_allclose(output[0], expected, rtol=0, atol=1e-6)
    key = jax.random.key(1)
    compiled()
    others = stack.init(key, X)
    assert not compiled()
    assert jax.tree.map(jnp.shape, others) == jax.tree.map(jnp.shape, variables)


def test_a_second_call_that_may_write_variables_compiles_nothing(compiled):
    """As of models with batch statistics."""
    stack = StackedGRU(I, H)
    variables = stack.init(KEY, X)
    stack.apply(variables, X, mutable=["batch_stats"])
    assert compiled()
    stack.apply(variables, 2 * X, mutable=["batch_stats"])
    assert not compiled()


@pytest.mark.parametrize("pooling", ["last", "final", "mean", "attention"])
def test_a_classifier_is_one_program(pooling, compiled):
    model = LSTMClassifier(hidden_size=H, bidirectional=True, pooling=pooling)
    images = np.ones((2, 5, 28), np.float32)
    variables = model.init(KEY, images)
    doubled = jax.tree.map(lambda leaf: 2 * leaf, variables)
    compiled()
    logits = model.apply(variables, images)
    assert compiled() == 1
    others = model.apply(doubled, images)
    assert not compiled()
    assert (logits != others).any()


def test_what_a_classifiers_parts_return_can_be_captured():
    model = LSTMClassifier(hidden_size=H)
    images = np.ones((2, 5, 28), np.float32)
    variables = model.init(KEY, images)
    expected = model.apply(variables, images)
    for _ in range(2):
        logits, seen = model.apply(variables, images, capture_intermediates=True)
        # The head is another program's here, with rounding of its own.
        np.testing.assert_allclose(logits, expected, atol=1e-6)
        output, _ = seen["intermediates"]["lstm"]["__call__"][0]
        assert output.shape == (2, 5, H)
        np.testing.assert_array_equal(
            seen["intermediates"]["head"]["__call__"][0], logits
        )


def test_flaxs_own_rnn_is_compiled_anew_which_is_why_these_can_fail(compiled):
    rnn = nn.RNN(nn.OptimizedLSTMCell(H))
    variables = rnn.init(KEY, X)
    rnn.apply(variables, X)
    compiled()
    rnn.apply(variables, X)
    assert compiled()


@pytest.mark.parametrize("implementation", ["scan", "fused"])
def test_layers_alike_are_traced_once_in_all_calls(implementation):
    stack = StackedLSTM(I, H, 3, implementation=implementation)
    variables = stack.init(KEY, X)

    def with_loops(jaxpr):
        bodies = [e.params["jaxpr"] for e in jaxpr.eqns if "jaxpr" in e.params]
        return [body for body in bodies if "scan[" in str(body)]

    (first,), (second,) = (
        with_loops(jax.make_jaxpr(partial(stack.apply))(variables, X)) for _ in range(2)
    )
    assert first is second
    layers = with_loops(first)
    assert len(layers) == 3
    assert layers[1] is layers[2]


@pytest.mark.parametrize("implementation", ["scan", "fused"])
def test_other_options_are_another_program(implementation):
    """Also where parameters and shapes are the same."""
    x, variables = X, StackedLSTM(I, H).init(KEY, X)
    stack = StackedLSTM(I, H, implementation=implementation)
    both_ways = StackedLSTM(I, H, bidirectional=True, implementation=implementation)
    params = variables["params"]["layer_0"]
    forward, _ = stack.apply(variables, x)
    output, _ = both_ways.apply(
        {"params": {"layer_0": params, "layer_0_reverse": params}}, x
    )
    assert (output[..., :H] == forward).all()
    backward, _ = stack.apply(variables, x[::-1])
    # Numbers below 1 in float32, after four steps.
    np.testing.assert_allclose(output[..., H:], backward[::-1], rtol=0, atol=1e-6)
    assert (output[..., H:] != forward).any()
    half, _ = stack.clone(dtype=jnp.bfloat16).apply(variables, x)
    assert half.dtype == jnp.bfloat16


def test_other_functions_of_a_cell_are_another_program():
    tanh, relu = (StackedRNN(I, H, nonlinearity=name) for name in ("tanh", "relu"))
    variables = tanh.init(KEY, X)
    assert (tanh.apply(variables, X)[0] < 0).any()
    assert (relu.apply(variables, X)[0] >= 0).all()


@pytest.mark.parametrize("options", [{}, {"remat": True}])
@pytest.mark.parametrize("implementation", ["scan", "fused"])
def test_the_precision_in_force_is_the_programs(implementation, options):
    stack = StackedLSTM(I, H, implementation=implementation, **options)
    variables = stack.init(KEY, X)
    for precision, name in (("highest", "HIGHEST"), ("tensorfloat32", "HIGH,")):
        with jax.default_matmul_precision(precision):
            text = jax.jit(stack.apply).lower(variables, X).as_text()
        products = [line for line in text.splitlines() if "dot_general" in line]
        assert products
        assert all(name in line for line in products), products


@pytest.mark.parametrize("kind", KINDS)
def test_interceptors_hear_every_call(kind):
    stack = KINDS[kind].build(I, H, implementation="scan")
    variables = stack.init(KEY, X)
    plain, _ = stack.apply(variables, X)

    def halved(run, args, kwargs, context):
        is_gate = isinstance(context.module, nn.Dense)
        result = run(*args, **kwargs)
        return 0.5 * result if is_gate else result

    for _ in range(2):
        with nn.intercept_methods(halved):
            output, _ = stack.apply(variables, X)
        assert (output != plain).any()
    np.testing.assert_array_equal(stack.apply(variables, X)[0], plain)


def test_parameters_that_are_missing_are_made_where_flax_is_told_to():
    stack = StackedGRU(I, H, 2)
    params = stack.init(KEY, X)["params"]
    given = {"params": {"layer_0": params["layer_0"]}}
    _, made = stack.apply(given, X, rngs={"params": KEY}, mutable=["params"])
    assert jax.tree.structure(made["params"]) == jax.tree.structure(params)
    for name, leaf in params["layer_0"]["ir"].items():
        np.testing.assert_array_equal(made["params"]["layer_0"]["ir"][name], leaf)


@pytest.mark.parametrize("options", [{}, {"remat": True}])
@pytest.mark.parametrize("implementation", ["scan", "fused"])
def test_rules_in_force_shard_what_is_in_a_box(implementation, options):
    init = nn.with_logical_partitioning(nn.initializers.normal(), ("in", "out"))
    options = {"implementation": implementation, "kernel_init": init} | options
    stack = StackedLSTM(I, H, **options)
    variables = stack.init(KEY, X)
    mesh = mesh_of_cpus()
    variables = jax.device_put(variables, NamedSharding(mesh, Spec()))

    def text(*rules):
        with jax.set_mesh(mesh), nn.logical_axis_rules(rules):
            return jax.jit(lambda v, x: stack.apply(v, x)).lower(variables, X).as_text()

    sharded = text(("in", None), ("out", "rows"))
    assert '[{}, {"rows"}]' in sharded
    assert '[{}, {"rows"}]' not in text(("in", None), ("out", None))


class OfConstrainedGates(StackedLSTM):
    def make_cell(self, dtype, name):
        gate = constrained_sigmoid
        return LSTMCell(self.hidden_size, gate_fn=gate, dtype=dtype, name=name)


def constrained_sigmoid(z):
    return nn.with_logical_constraint(jax.nn.sigmoid(z), (None, "units"))


def test_rules_in_force_are_those_of_what_a_gate_calls():
    stack = OfConstrainedGates(I, H, implementation="scan")
    variables = stack.init(KEY, X)

    def text(units):
        with jax.set_mesh(mesh_of_cpus()), nn.logical_axis_rules([("units", units)]):
            return jax.jit(lambda v, x: stack.apply(v, x)).lower(variables, X).as_text()

    assert '[{}, {"rows"}]' in text("rows")
    assert '[{}, {"rows"}]' not in text(None)


@pytest.mark.parametrize("implementation", ["scan", "fused"])
def test_what_is_run_has_the_layers_name(implementation):
    stack = StackedLSTM(I, H, 3, implementation=implementation)
    run = jax.jit(stack.apply).lower(stack.init(KEY, X), X).compile()
    names = re.findall(r'op_name="([^"]*)"', run.as_text())
    for layer in range(3):
        assert any(f"/layer_{layer}/" in name for name in names)


class UnhashableGate:
    __hash__ = None

    def __call__(self, z):
        return jax.nn.sigmoid(z)


class OfOtherGates(StackedLSTM):
    def make_cell(self, dtype, name):
        gate = UnhashableGate()
        return LSTMCell(self.hidden_size, gate_fn=gate, dtype=dtype, name=name)


def test_loops_that_come_to_be_compiled_are_taken(native, monkeypatch):
    """By calls that are alike in all else."""
    stack = StackedLSTM(I, H)
    variables = stack.init(KEY, X)

    def text():
        return str(jax.make_jaxpr(partial(stack.apply))(variables, X))

    before = text()
    with monkeypatch.context() as changed:
        changed.setenv("FLAX_LSTM_CACHE_DIR", compiled_loops.directory())
        assert "flax_lstm_forward" in text()
    assert "flax_lstm_forward" not in before
    assert text() == before


def test_a_cell_that_has_no_hash_is_run_all_the_same():
    stack, plain = (
        kind(I, H, implementation="scan") for kind in (OfOtherGates, StackedLSTM)
    )
    variables = plain.init(KEY, X)
    np.testing.assert_array_equal(
        stack.apply(variables, X)[0], plain.apply(variables, X)[0]
    )


class Scaled:
    """A user's recurrence: it reads what can change, writes, and has no hash."""

    __hash__ = None
    scale = 1.0

    def __call__(self, cell, carry, inputs, *, valid, reverse):
        carry, y = scan_over_time(cell, carry, inputs, valid=valid, reverse=reverse)
        cell.sow("seen", "steps", y.shape[0])
        return carry, self.scale * y


class OfScaledOutputs(StackedGRU):
    implementations: ClassVar[dict] = {"auto": Scaled()}


def test_a_users_own_recurrence_is_run_as_it_is(monkeypatch):
    stack = OfScaledOutputs(I, H)
    params = {"params": stack.init(KEY, X)["params"]}
    output, _ = stack.apply(params, X)
    monkeypatch.setattr(Scaled, "scale", 2.0)
    for _ in range(2):
        (twice, _), seen = stack.apply(params, X, mutable=["seen"])
        np.testing.assert_array_equal(twice, 2 * output)
        assert seen["seen"]["layer_0"]["steps"] == (T,)


def test_a_users_own_recurrence_is_run_as_it_is_in_a_classifier(monkeypatch):
    ways = {**StackedGRU.implementations, "scaled": Scaled()}
    monkeypatch.setattr(StackedGRU, "implementations", ways)
    plain = GRUClassifier(input_size=I, hidden_size=H, pooling="mean")
    x = np.moveaxis(X, 1, 0)
    variables = plain.init(KEY, x)
    scaled = plain.clone(implementation="scaled")
    np.testing.assert_allclose(
        scaled.apply(variables, x), plain.apply(variables, x), rtol=1e-6
    )
    monkeypatch.setattr(Scaled, "scale", 2.0)
    assert (scaled.apply(variables, x) != plain.apply(variables, x)).any()


class OfWideOutputs(StackedGRU):
    """A user's stack, with a field that is used in every call."""

    scale_init: Callable = nn.initializers.ones

    @nn.compact
    def __call__(self, input, hx=None, **options):
        output, state = self.run(input, hx, None, True)
        scale = self.scale_init(None, (2 * H,))
        output = jnp.concatenate([output, output], axis=-1) * scale
        self.sow("seen", "width", output.shape[-1])
        return output.astype(jnp.float32), state


class OfItsOwnStack(GRUClassifier):
    def make_stack(self, **options):
        return OfWideOutputs(**options)


def test_a_users_own_stack_is_run_as_it_is():
    model = OfItsOwnStack(input_size=I, hidden_size=H, pooling="mean", dtype="bfloat16")
    x = np.moveaxis(X, 1, 0)
    expected, variables = model.init_with_output(KEY, x)
    assert variables["params"]["head"]["kernel"].shape == (2 * H, 10)
    params = {"params": variables["params"]}
    for _ in range(2):
        logits, seen = model.apply(params, x, mutable=["seen"])
        np.testing.assert_array_equal(logits, expected)
        assert logits.dtype == jnp.float32
        assert seen["seen"]["gru"]["width"] == (2 * H,)


@pytest.mark.filterwarnings("error")
def test_loops_that_nobody_asks_for_are_not_looked_at(tmp_path, monkeypatch):
    monkeypatch.setenv("FLAX_LSTM_CACHE_DIR", str(tmp_path))
    library.CPU.path().write_bytes(b"damaged")
    for implementation in ("scan", "fused"):
        stack = StackedLSTM(I, H, implementation=implementation)
        stack.apply(stack.init(KEY, X), X)


class Lazy:
    """A parameter that becomes an array when it is asked for."""

    def __init__(self, array):
        self.array = array
        self.shape = array.shape
        self.dtype = array.dtype

    def __jax_array__(self):
        return self.array


def test_a_parameter_may_be_what_becomes_an_array():
    stack = StackedLSTM(I, H, implementation="fused")
    variables = stack.init(KEY, X)
    expected, _ = stack.apply(variables, X)
    output, _ = stack.apply(jax.tree.map(Lazy, variables), X)
    np.testing.assert_array_equal(output, expected)


def test_sizes_may_be_any_integers():
    stack = StackedGRU(I, np.array(H), num_layers=jnp.array(2))
    variables = stack.init(KEY, X)
    np.testing.assert_array_equal(
        stack.apply(variables, X)[0], StackedGRU(I, H, 2).apply(variables, X)[0]
    )
    assert stack == StackedGRU(I, H, 2)
    assert hash(stack) == hash(StackedGRU(I, H, 2))
    classifier = GRUClassifier(np.array(3), I, jnp.array(H))
    assert hash(classifier) == hash(GRUClassifier(3, I, H))
    jax.jit(stack.apply)(variables, X)


class Gained(GRUCell):
    """A user's cell that reads what can change."""

    gain = 1.0

    @nn.compact
    def __call__(self, carry, inputs):
        carry, y = super().__call__(carry, inputs)
        return carry, self.gain * y


class OfGained(StackedGRU):
    def make_cell(self, dtype, name):
        return Gained(self.hidden_size, dtype=dtype, name=name)


def test_a_users_own_cell_is_run_as_it_is(monkeypatch):
    stack = OfGained(I, H)
    variables = stack.init(KEY, X)
    output, _ = stack.apply(variables, X)
    monkeypatch.setattr(Gained, "gain", 2.0)
    np.testing.assert_array_equal(stack.apply(variables, X)[0], 2 * output)


def test_a_program_has_the_name_of_what_is_run():
    stack = StackedLSTM(I, H, implementation="fused")
    text = jax.jit(stack.apply).lower(stack.init(KEY, X), X).as_text()
    assert "func.func private @run_fused_over_time" in text


class Unhashable:
    """An initializer that equals others by value."""

    __hash__ = None

    def __eq__(self, other):
        return isinstance(other, Unhashable)

    def __call__(self, key, shape, dtype=jnp.float32, out_sharding=None):
        return jnp.full(shape, 0.25, dtype)


def test_initializers_need_no_hash(compiled):
    stack = StackedGRU(I, H, kernel_init=Unhashable())
    variables = stack.init(KEY, X)
    assert (variables["params"]["layer_0"]["ir"]["kernel"] == 0.25).all()
    output, _ = stack.apply(variables, X)
    compiled()
    again, _ = StackedGRU(I, H, kernel_init=lambda *a: Unhashable()(*a)).apply(
        variables, X
    )
    assert not compiled()
    np.testing.assert_array_equal(again, output)


@pytest.mark.parametrize("remat", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_an_error_names_the_layer(kind, remat):
    stack = KINDS[kind].build(I, H, 2, implementation="scan", remat=remat)
    params = stack.init(KEY, X)["params"]
    name = next(iter(params["layer_1"]))
    del params["layer_1"][name]
    with pytest.raises(flax.errors.ScopeParamNotFoundError, match="layer_1"):
        stack.apply({"params": params}, X)
