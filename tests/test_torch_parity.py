"""`StackedLSTM` against torch.nn.LSTM: outputs, states and every gradient.

The full product of the options is what CI runs (`-m ''`). The default run takes
of it a set in which every three options stand together at least once.
"""

import itertools
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpy_lstm
import pytest

from flax_lstm import StackedLSTM, params_from_torch

torch = pytest.importorskip("torch", reason="torch is the oracle of this module")

IMPLEMENTATIONS = sorted(set(StackedLSTM.implementations) - {"auto"})  # One of them.

T, B, I, H = 5, 3, 4, 5  # noqa: E741
LENGTHS = np.array([3, 1, 5])  # Not sorted; one row is full, one is a single step.

# Times the largest entry of the reference. float32 rounds at 6e-8 and a gradient
# here sums some hundred terms; float64 is only to show that what remains in float32
# is rounding, so its bound lies far from both 1e-5 and its own 1e-16.
TOLERANCES = {"float32": 1e-5, "float64": 1e-10}

# The least optimised code that XLA makes: what is checked is the formulas, and
# compiling takes nearly all the time. Only XLA:CPU knows these options.
COMPILER_OPTIONS = {
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
}


class Case(NamedTuple):
    implementation: str
    dtype: str
    layers: int
    bias: bool
    batch_first: bool
    bidirectional: bool
    proj_size: int
    state: str
    feed: str

    def __str__(self):
        flags = [
            f"{self.layers}layers",
            "bias" if self.bias else "no_bias",
            "batch_first" if self.batch_first else "time_first",
            "two_ways" if self.bidirectional else "one_way",
            f"proj{self.proj_size}",
            self.state,
            self.feed,
        ]
        return "-".join([self.implementation, self.dtype, *flags])

    @property
    def rows(self):
        return self.layers * (2 if self.bidirectional else 1)


CASES = [
    Case(*values)
    for values in itertools.product(
        IMPLEMENTATIONS,
        TOLERANCES,
        (1, 2, 3),
        (True, False),
        (False, True),
        (False, True),
        (0, 3),
        ("zero_state", "given_state"),
        ("whole", "lengths", "unbatched"),
    )
]


def covering(cases, strength):
    """Few cases in which each `strength` options of `cases` meet, greedily chosen."""
    meets = {c: set(itertools.combinations(enumerate(c), strength)) for c in cases}
    left = set().union(*meets.values())
    chosen = []
    while left:
        best = max(meets, key=lambda case: len(meets[case] & left))
        left -= meets.pop(best)
        chosen.append(best)
    return set(chosen)


FAST = covering(CASES, 3)
PARAMETERS = [
    pytest.param(c, id=str(c), marks=() if c in FAST else pytest.mark.slow)
    for c in CASES
]


def draw(case):
    """Input, states and the loss's weights, time-major and batched, from one seed."""
    rng = np.random.default_rng(0)
    width = case.proj_size or H
    shapes = {
        "input": (T, B, I),
        "h_0": (case.rows, B, width),
        "c_0": (case.rows, B, H),
        "of_output": (T, B, width * (2 if case.bidirectional else 1)),
        "of_h_n": (case.rows, B, width),
        "of_c_n": (case.rows, B, H),
    }
    data = {k: rng.standard_normal(s).astype(case.dtype) for k, s in shapes.items()}
    if case.feed == "unbatched":
        return {name: array[:, 0] for name, array in data.items()}
    if case.batch_first:
        for name in ("input", "of_output"):
            data[name] = data[name].swapaxes(0, 1)
    return data


def padding(case):
    """Where the input is padding: (T, B) or (B, T)."""
    behind = np.arange(T)[:, None] >= LENGTHS
    return behind.T if case.batch_first else behind


def run_torch(case, model, data):
    """Results and gradients by name; parameters' as a Flax tree."""
    given = case.state == "given_state"
    tensors = {k: torch.from_numpy(v) for k, v in data.items()}
    for name in ("input", "h_0", "c_0"):
        tensors[name].requires_grad_()
    fed = tensors["input"]
    if case.feed == "lengths":
        fed = torch.nn.utils.rnn.pack_padded_sequence(
            fed, torch.from_numpy(LENGTHS), case.batch_first, enforce_sorted=False
        )
    output, (h_n, c_n) = model(fed, (tensors["h_0"], tensors["c_0"]) if given else None)
    if case.feed == "lengths":
        output, _ = torch.nn.utils.rnn.pad_packed_sequence(
            output, case.batch_first, total_length=T
        )
    results = {"output": output, "h_n": h_n, "c_n": c_n}
    sum((tensors[f"of_{k}"] * v).sum() for k, v in results.items()).backward()

    weights = {k: p.grad for k, p in model.named_parameters()}
    # Our one bias gets the gradient that each of torch's two gets, not their sum.
    for name in weights:
        if name.startswith("bias_hh"):
            weights[name] = torch.zeros_like(weights[name])
    gradients = {"input": tensors["input"].grad, "params": params_from_torch(weights)}
    if given:
        gradients |= {name: tensors[name].grad for name in ("h_0", "c_0")}
    return {k: v.detach() for k, v in results.items()}, gradients


def run_flax(case, params, data):
    lstm = StackedLSTM(
        I,
        H,
        case.layers,
        bias=case.bias,
        batch_first=case.batch_first,
        bidirectional=case.bidirectional,
        proj_size=case.proj_size,
        param_dtype=case.dtype,
        implementation=case.implementation,
    )
    lengths = LENGTHS if case.feed == "lengths" else None

    def loss(arguments):
        hx = (arguments["h_0"], arguments["c_0"]) if "h_0" in arguments else None
        output, (h_n, c_n) = lstm.apply(
            {"params": arguments["params"]}, arguments["input"], hx, seq_lengths=lengths
        )
        results = {"output": output, "h_n": h_n, "c_n": c_n}
        return sum((data[f"of_{k}"] * v).sum() for k, v in results.items()), results

    arguments = {"input": data["input"], "params": params}
    if case.state == "given_state":
        arguments |= {"h_0": data["h_0"], "c_0": data["c_0"]}
    options = COMPILER_OPTIONS if jax.default_backend() == "cpu" else None
    value_and_grad = jax.value_and_grad(loss, has_aux=True)
    (_, results), gradients = jax.jit(value_and_grad, compiler_options=options)(
        arguments
    )
    return results, gradients


def assert_close(got, expected, tolerance):
    """Each array within `tolerance` times max(1, its reference's largest entry)."""

    def check(path, got, expected):
        got, expected = np.asarray(got), np.asarray(expected)
        assert got.dtype == expected.dtype
        np.testing.assert_allclose(
            got,
            expected,
            rtol=0,
            atol=tolerance * max(1, np.abs(expected).max()),
            err_msg=jax.tree_util.keystr(path),
        )

    jax.tree_util.tree_map_with_path(check, got, expected)


def test_the_default_run_has_every_three_options_together():
    def meetings(cases):
        return {m for c in cases for m in itertools.combinations(enumerate(c), 3)}

    assert meetings(FAST) == meetings(CASES)


@pytest.mark.parametrize("case", PARAMETERS)
def test_outputs_states_and_gradients_are_torchs(case):
    torch.manual_seed(0)
    model = torch.nn.LSTM(
        I,
        H,
        case.layers,
        bias=case.bias,
        batch_first=case.batch_first,
        bidirectional=case.bidirectional,
        proj_size=case.proj_size,
    ).to(getattr(torch, case.dtype))
    data = draw(case)
    with jax.enable_x64(case.dtype == "float64"):
        expected, expected_gradients = run_torch(case, model, data)
        if case.feed == "lengths":
            data = data | {"input": data["input"].copy()}
            data["input"][padding(case)] = np.nan
        params = params_from_torch(model.state_dict())
        results, gradients = run_flax(case, params, data)

    assert_close(results, expected, TOLERANCES[case.dtype])
    assert_close(gradients, expected_gradients, TOLERANCES[case.dtype])
    if case.feed == "lengths":
        assert not np.asarray(gradients["input"])[padding(case)].any()


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("proj_size", [0, 3])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_rows_of_length_zero_beside_torchs_rows(
    implementation, bidirectional, proj_size, x64
):
    """torch refuses a length of 0; it gets the other rows, the Python loop gets all."""
    torch.manual_seed(0)
    options = {"bidirectional": bidirectional, "proj_size": proj_size}
    model = torch.nn.LSTM(I, H, 2, **options).to(torch.float64)
    params = params_from_torch(model.state_dict())
    rng = np.random.default_rng(0)
    rows, width = 4 if bidirectional else 2, proj_size or H
    x = rng.standard_normal((T, 4, I))
    h_0, c_0 = (rng.standard_normal((rows, 4, size)) for size in (width, H))
    lengths = np.array([0, 2, 0, T])
    kept = np.flatnonzero(lengths)

    lstm = StackedLSTM(I, H, 2, **options, implementation=implementation)
    run = jax.jit(partial(lstm.apply, seq_lengths=lengths))
    output, (h_n, c_n) = run({"params": params}, x, (h_0, c_0))
    results = {"output": output, "h_n": h_n, "c_n": c_n}

    packed = torch.nn.utils.rnn.pack_padded_sequence(
        torch.from_numpy(x[:, kept]),
        torch.from_numpy(lengths[kept]),
        enforce_sorted=False,
    )
    with torch.no_grad():
        output, (h_n, c_n) = model(
            packed, (torch.from_numpy(h_0[:, kept]), torch.from_numpy(c_0[:, kept]))
        )
    output, _ = torch.nn.utils.rnn.pad_packed_sequence(output, total_length=T)
    of_torch = {"output": output, "h_n": h_n, "c_n": c_n}
    assert_close({k: v[:, kept] for k, v in results.items()}, of_torch, 1e-10)

    numpy_params = jax.tree.map(np.asarray, params)
    output, (h_n, c_n) = numpy_lstm.lstm(numpy_params, x, (h_0, c_0), lengths)
    assert_close(results, {"output": output, "h_n": h_n, "c_n": c_n}, 1e-10)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_rows_of_length_zero_pass_gradients_to_their_initial_state_only(implementation):
    lstm = StackedLSTM(I, H, bidirectional=True, implementation=implementation)
    x = jnp.full((T, 2, I), jnp.nan).at[:, 1].set(1.0)
    variables = lstm.init(jax.random.key(0), jnp.ones((T, 2, I)))
    hx = jnp.ones((2, 2, H)), jnp.ones((2, 2, H))

    def loss(x, hx):
        output, (h_n, c_n) = lstm.apply(variables, x, hx, seq_lengths=np.array([0, T]))
        return output.sum() + h_n.sum() + c_n.sum()

    of_x, (of_h, of_c) = jax.jit(jax.grad(loss, (0, 1)))(x, hx)
    assert not of_x[:, 0].any()
    np.testing.assert_array_equal(of_h[:, 0], 1.0)
    np.testing.assert_array_equal(of_c[:, 0], 1.0)
