"""The stacks against torch's LSTM, GRU and RNN: outputs, states, every gradient.

The full product of all options takes many minutes (`-m "slow or not slow"`). The gate
runs a set in which every four stand together at least once (`-m "not long"`), and the
default run every three of the LSTM, and every two of its compiled loops and of the
others, each compiled as one program. The rest is called outside of `jax.jit`, where
layers alike are compiled once for all cases. cuDNN's calls are stood in for where there
is no NVIDIA GPU.
"""

import heapq
import itertools
from functools import partial
from typing import NamedTuple

import compiled_loops
import jax
import jax.numpy as jnp
import numpy as np
import numpy_stack
import pytest
from cudnn_stand_in import stand_in_for_cudnn
from kinds import KINDS, lay_out_as_if_large, packed, trace_layers_anew, unpacked
from oracle import torch

from flax_lstm import StackedLSTM, params_from_torch

T, B, I, H = 5, 3, 4, 5  # noqa: E741
LENGTHS = np.array([3, 1, 5])  # Not sorted; one row is full, one is a single step.

# Times the largest entry of the reference. float32 rounds at 6e-8 and a gradient
# here sums some hundred terms; float64 is only to show that what remains in float32
# is rounding, so its bound lies far from both 1e-5 and its own 1e-16.
TOLERANCES = {"float32": 1e-5, "float64": 1e-10}

# As `fused`, with the products laid out as they are for many units.
FUSED_LARGE = "fused_large"


class Case(NamedTuple):
    kind: str
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
        return "-".join([self.kind, self.implementation, self.dtype, *flags])

    @property
    def rows(self):
        return self.layers * (2 if self.bidirectional else 1)

    @property
    def options(self):
        options = {
            "bias": self.bias,
            "batch_first": self.batch_first,
            "bidirectional": self.bidirectional,
        }
        # Only the LSTM has the option.
        return options | ({"proj_size": self.proj_size} if self.proj_size else {})

    @property
    def initial_states(self):
        return [f"{name}_0" for name in KINDS[self.kind].state_names]

    @property
    def final_states(self):
        return [f"{name}_n" for name in KINDS[self.kind].state_names]


def cases(kinds, proj_sizes, implementations=None):
    return [
        Case(kind, implementation, *values)
        for kind in kinds
        for implementation in implementations or KINDS[kind].implementations
        for values in itertools.product(
            TOLERANCES,
            (1, 2, 3),
            (True, False),
            (False, True),
            (False, True),
            proj_sizes,
            ("zero_state", "given_state"),
            ("whole", "lengths", "unbatched"),
        )
    ]


LSTM_CASES = cases(["lstm"], proj_sizes=(0, 3))
LARGE_CASES = cases(["lstm"], proj_sizes=(0, 3), implementations=[FUSED_LARGE])
# They have no projection and no other dtype.
CUDNN_CASES, NATIVE_CASES, NATIVE_GRU_CASES = (
    [
        case
        for case in cases([kind], proj_sizes=(0,), implementations=[implementation])
        if case.dtype == "float32"
    ]
    for kind, implementation in (
        ("lstm", "cudnn"),
        ("lstm", "native"),
        ("gru", "native"),
    )
)
OTHER_CASES = cases(sorted(set(KINDS) - {"lstm"}), proj_sizes=(0,))


def covering(cases, strength):
    """Few cases in which each `strength` options of `cases` meet, greedily chosen."""
    meets = [set(itertools.combinations(enumerate(c), strength)) for c in cases]
    left = set().union(*meets)
    # What a case adds can only shrink: the first that still adds what it promised
    # is the best.
    promises = [(-len(combinations), k) for k, combinations in enumerate(meets)]
    heapq.heapify(promises)
    chosen = set()
    while left:
        promised, k = heapq.heappop(promises)
        added = meets[k] & left
        if len(added) == -promised:
            chosen.add(cases[k])
            left -= added
        else:
            heapq.heappush(promises, (-len(added), k))
    return chosen


REST = [LARGE_CASES, CUDNN_CASES, NATIVE_CASES, NATIVE_GRU_CASES, OTHER_CASES]

FAST = covering(LSTM_CASES, 3).union(*(covering(cases, 2) for cases in REST))
SLOW = set().union(*(covering(cases, 4) for cases in (LSTM_CASES, *REST)))


def marks_of(case):
    if case in FAST:
        return ()
    # Those that share most of what is compiled, with `--dist loadgroup` in one process.
    alike = case.kind, case.implementation, case.dtype, case.bias, case.proj_size
    together = pytest.mark.xdist_group("-".join(map(str, (*alike, case.feed))))
    return together, pytest.mark.slow if case in SLOW else pytest.mark.long


PARAMETERS = [
    pytest.param(case, id=str(case), marks=marks_of(case))
    for case in itertools.chain(LSTM_CASES, *REST)
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
    for name in ("input", *case.initial_states):
        tensors[name].requires_grad_()
    fed = tensors["input"]
    if case.feed == "lengths":
        fed = torch.nn.utils.rnn.pack_padded_sequence(
            fed, torch.from_numpy(LENGTHS), case.batch_first, enforce_sorted=False
        )
    hx = packed([tensors[name] for name in case.initial_states]) if given else None
    output, state = model(fed, hx)
    if case.feed == "lengths":
        output, _ = torch.nn.utils.rnn.pad_packed_sequence(
            output, case.batch_first, total_length=T
        )
    results = named(case, output, state)
    sum((tensors[f"of_{k}"] * v).sum() for k, v in results.items()).backward()

    weights = {k: p.grad for k, p in model.named_parameters()}
    # Our one bias gets the gradient that each of torch's two gets, not their sum. The
    # last H rows of a GRU are the gate n, which has both biases here, too.
    summed = slice(2 * H if case.kind == "gru" else None)
    for name in weights:
        if name.startswith("bias_hh"):
            weights[name][summed] = 0
    gradients = {"input": tensors["input"].grad, "params": params_from_torch(weights)}
    if given:
        gradients |= {name: tensors[name].grad for name in case.initial_states}
    return {k: v.detach() for k, v in results.items()}, gradients


def named(case, output, state):
    return {"output": output} | dict(
        zip(case.final_states, unpacked(state), strict=True)
    )


def run_flax(case, params, data):
    stack = KINDS[case.kind].build(
        I,
        H,
        case.layers,
        **case.options,
        param_dtype=case.dtype,
        implementation="fused"
        if case.implementation == FUSED_LARGE
        else case.implementation,
    )
    given = case.initial_states if case.state == "given_state" else []
    lengths = LENGTHS if case.feed == "lengths" else None

    def loss(arguments):
        hx = packed([arguments[name] for name in given]) if given else None
        output, state = stack.apply(
            {"params": arguments["params"]}, arguments["input"], hx, seq_lengths=lengths
        )
        results = named(case, output, state)
        return sum((data[f"of_{k}"] * v).sum() for k, v in results.items()), results

    arguments = {"input": data["input"], "params": params}
    arguments |= {name: data[name] for name in given}
    value_and_grad = jax.value_and_grad(loss, has_aux=True)
    if case in FAST:
        value_and_grad = jax.jit(value_and_grad)
    (_, results), gradients = value_and_grad(arguments)
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


@pytest.mark.parametrize("case", PARAMETERS)
def test_outputs_states_and_gradients_are_torchs(case, monkeypatch):
    if case not in FAST:
        trace_layers_anew(monkeypatch)
    if case.implementation == FUSED_LARGE:
        lay_out_as_if_large(monkeypatch)
    if case.implementation == "cudnn":
        stand_in_for_cudnn(monkeypatch)
    if case.implementation == "native":
        compiled_loops.load()
    torch.manual_seed(0)
    model = KINDS[case.kind].build_in_torch(torch, I, H, case.layers, **case.options)
    model = model.to(getattr(torch, case.dtype))
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


@pytest.mark.parametrize("z", [-16.0, -30.0, -60.0])
@pytest.mark.parametrize("implementation", ["scan", "fused", "native"])
def test_gates_that_are_almost_closed_keep_their_digits(implementation, z):
    """σ(-16) is 1e-7, of which torch, too, has seven digits, and gradients as many."""
    if implementation == "native":
        compiled_loops.load()
    torch.manual_seed(0)
    model = torch.nn.LSTM(I, H)
    with torch.no_grad():
        model.bias_ih_l0[:H] += z  # Gate i's.
    params = params_from_torch(model.state_dict())
    model.double()
    x = np.random.default_rng(0).standard_normal((T, B, I)).astype(np.float32)
    _, (_, expected) = model(torch.from_numpy(x).double())
    expected.sum().backward()
    stack = StackedLSTM(I, H, implementation=implementation)

    @jax.jit
    @jax.value_and_grad
    def through(params):
        _, (_, c_n) = stack.apply({"params": params}, x)
        return c_n.sum()

    value, gradients = through(params)
    of_bias = gradients["layer_0"]["hi"]["bias"]
    # z itself is rounded, by 4e-6 at most, and a GPU's fast exponential is off by 9e-6.
    close = partial(np.testing.assert_allclose, rtol=5e-5)
    close(value, expected.sum().item())
    close(of_bias, model.bias_ih_l0.grad[:H])


RUNS = [
    pytest.param(
        name,
        {"implementation": implementation} | options,
        id="-".join([name, implementation, *options]),
        marks=pytest.mark.slow if name == "rnn_relu" else (),
    )
    for name, kind in KINDS.items()
    for implementation in kind.implementations
    for options in ([{}, {"proj_size": 3}] if name == "lstm" else [{}])
]


@pytest.mark.parametrize(("kind", "options"), RUNS)
# Both ways have the one way in them.
@pytest.mark.parametrize(
    "bidirectional", [pytest.param(False, marks=pytest.mark.slow), True]
)
def test_rows_of_length_zero_beside_torchs_rows(kind, options, bidirectional, x64):
    """torch refuses a length of 0; it gets the other rows, the Python loop gets all."""
    torch.manual_seed(0)
    options = options | {"bidirectional": bidirectional}
    stack = KINDS[kind].build(I, H, 2, **options)
    del options["implementation"]
    model = KINDS[kind].build_in_torch(torch, I, H, 2, **options).to(torch.float64)
    params = params_from_torch(model.state_dict())
    rng = np.random.default_rng(0)
    rows = 4 if bidirectional else 2
    x = rng.standard_normal((T, 4, I))
    states = [rng.standard_normal((rows, 4, size)) for size in stack.state_sizes]
    lengths = np.array([0, 2, 0, T])
    kept = np.flatnonzero(lengths)

    run = jax.jit(partial(stack.apply, seq_lengths=lengths))
    output, state = run({"params": params}, x, packed(states))
    results = [output, *unpacked(state)]

    fed = torch.nn.utils.rnn.pack_padded_sequence(
        torch.from_numpy(x[:, kept]),
        torch.from_numpy(lengths[kept]),
        enforce_sorted=False,
    )
    with torch.no_grad():
        output, state = model(
            fed, packed([torch.from_numpy(array[:, kept]) for array in states])
        )
    output, _ = torch.nn.utils.rnn.pad_packed_sequence(output, total_length=T)
    of_torch = [output, *unpacked(state)]
    assert_close([array[:, kept] for array in results], of_torch, 1e-10)

    numpy_params = jax.tree.map(np.asarray, params)
    output, states = numpy_stack.run(kind, numpy_params, x, states, lengths)
    assert_close(results, [output, *states], 1e-10)


@pytest.mark.parametrize(
    ("kind", "implementation"),
    [(name, i) for name, kind in KINDS.items() for i in kind.implementations],
)
def test_rows_of_length_zero_pass_gradients_to_their_initial_state_only(
    kind, implementation
):
    stack = KINDS[kind].build(I, H, bidirectional=True, implementation=implementation)
    x = jnp.full((T, 2, I), jnp.nan).at[:, 1].set(1.0)
    variables = stack.init(jax.random.key(0), jnp.ones((T, 2, I)))
    hx = packed([jnp.ones((2, 2, H)) for _ in stack.state_sizes])

    def loss(x, hx):
        results = stack.apply(variables, x, hx, seq_lengths=np.array([0, T]))
        return sum(array.sum() for array in jax.tree.leaves(results))

    of_x, of_hx = jax.jit(jax.grad(loss, (0, 1)))(x, hx)
    assert not of_x[:, 0].any()
    for of_state in unpacked(of_hx):
        np.testing.assert_array_equal(of_state[:, 0], 1.0)
