"""What the fused implementation and rematerialisation are for: their structure.

That they compute the same is shown where all implementations are tested.
"""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxprs import equations, inner_jaxprs
from kinds import lay_out_as_elsewhere

from flax_lstm import StackedLSTM

# All different, so that a shape says what it is. On a CPU products are laid out in one
# way with H units, in another with MANY.
T, B, I, H, P = 9, 7, 3, 5, 2  # noqa: E741
MANY = 160


def products(jaxpr, in_loop=False):
    """(whether inside a loop, output shape) of every dot product of a jaxpr.

    Of what is there for each platform, the CPU's.
    """
    for equation in jaxpr.eqns:
        if equation.primitive.name == "cond":
            assert equation.params["branches_platforms"] == (("cpu",), None)
            yield from products(equation.params["branches"][0].jaxpr, in_loop)
            continue
        if equation.primitive.name == "dot_general":
            yield in_loop, equation.outvars[0].aval.shape
        inside = in_loop or equation.primitive.name in ("scan", "while")
        for inner in inner_jaxprs(equation):
            yield from products(inner, inside)


def scans(jaxpr):
    """The scan equations of a jaxpr; of what is there for each platform, the CPU's."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "cond":
            yield from scans(equation.params["branches"][0].jaxpr)
            continue
        if equation.primitive.name == "scan":
            yield equation
        for inner in inner_jaxprs(equation):
            yield from scans(inner)


def setting(hidden=H, **options):
    lstm = StackedLSTM(I, hidden, **options)
    x = jnp.ones((T, B, I))
    return lstm, x, lstm.init(jax.random.key(0), x)


def shapes_in_loops(lstm, x, variables, of_input):
    def loss(variables, x):
        return lstm.apply(variables, x)[0].sum()

    argnums = (0, 1) if of_input else 0
    jaxpr = jax.make_jaxpr(jax.grad(loss, argnums))(variables, x).jaxpr
    found = list(products(jaxpr))
    in_loop = [shape for inside, shape in found if inside]
    outside = [shape for inside, shape in found if not inside]
    return in_loop, outside


@pytest.mark.parametrize("proj_size", [0, P])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("hidden", [H, MANY])
def test_no_loop_holds_a_product_of_a_weights_gradient(
    hidden, bidirectional, proj_size
):
    lstm, x, variables = setting(
        hidden, implementation="fused", bidirectional=bidirectional, proj_size=proj_size
    )
    in_loop, outside = shapes_in_loops(lstm, x, variables, of_input=True)
    assert in_loop
    assert all(shape[0] == B for shape in in_loop)
    h_width = proj_size or hidden
    for of_weights in ((I, 4 * hidden), (h_width, 4 * hidden)):
        assert of_weights in outside or of_weights[::-1] in outside


def test_the_scan_has_such_products_which_is_why_this_can_fail():
    lstm, x, variables = setting(implementation="scan")
    in_loop, _ = shapes_in_loops(lstm, x, variables, of_input=True)
    assert any(B not in shape for shape in in_loop)


@pytest.mark.parametrize(
    ("hidden", "forward"), [(H, [(B, 4 * H)]), (MANY, [(B, MANY)] * 4)]
)
def test_the_loops_hold_the_recurrent_products_only(hidden, forward):
    """Forward for all gates at once, or one for each; backward one."""
    lstm, x, variables = setting(hidden, implementation="fused")
    in_loop, _ = shapes_in_loops(lstm, x, variables, of_input=True)
    assert sorted(in_loop) == sorted([*forward, (B, hidden)])


def test_five_numbers_a_unit_and_step_are_kept():
    """Besides the output; the loop backward reads them and stacks dz alone."""
    lstm, x, variables = setting(implementation="fused")

    def loss(variables):
        return lstm.apply(variables, x)[0].sum()

    jaxpr = jax.make_jaxpr(jax.grad(loss))(variables).jaxpr
    # A carry has no axis of time.
    stacked = [
        [value.aval.shape for value in loop.outvars if value.aval.ndim == 3]
        for loop in scans(jaxpr)
    ]
    assert stacked == [[(T, B, H)] * 6, [(T, B, 4 * H)]]


def test_an_inputs_gradient_that_nobody_asks_for_is_not_computed():
    lstm, x, variables = setting(implementation="fused")
    _, with_input = shapes_in_loops(lstm, x, variables, of_input=True)
    _, without = shapes_in_loops(lstm, x, variables, of_input=False)
    assert (T, B, I) in with_input
    assert (T, B, I) not in without


@pytest.mark.parametrize(
    ("platform", "hidden", "before", "gates_of_one"),
    [("cpu", H, 4, 4), ("cpu", MANY, 0, 1), ("cuda", H, 4, 4), ("cuda", MANY, 4, 4)],
)
def test_products_follow_the_platform_lowered_for(
    platform, hidden, before, gates_of_one
):
    """Lowered here for a platform that need not be here."""
    lstm, x, variables = setting(hidden, implementation="auto")
    traced = jax.jit(lstm.apply).trace(variables, x)
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    all_steps = f"tensor<{T}x{B}x{hidden}xf32>"
    products = [line for line in text.splitlines() if "stablehlo.dot_general" in line]
    assert sum(line.endswith(all_steps) for line in products) == before
    # Steps one after another may stand there as often, by JAX's version.
    of_a_step = {line.rpartition("-> ")[2] for line in products} - {all_steps}
    assert of_a_step == {f"tensor<{B}x{gates_of_one * hidden}xf32>"}


# What stands before the loop: all inputs' products; none; those of few large rows.
@pytest.mark.parametrize(
    ("inputs", "hidden", "batch"), [(3, 32, 7), (3, 128, 7), (256, 128, 2)]
)
def test_each_layout_of_the_products_gives_the_scans_results(
    inputs, hidden, batch, x64
):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((3, batch, inputs))

    def run(implementation):
        lstm = StackedLSTM(
            inputs, hidden, implementation=implementation, param_dtype="float64"
        )
        variables = lstm.init(jax.random.key(0), x)

        def loss(variables, x):
            output, state = lstm.apply(variables, x)
            return (output**2).sum() + state[1].sum(), output

        return jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(variables, x)

    # float64, sums of some thousand terms of order 1.
    check = partial(np.testing.assert_allclose, rtol=0, atol=1e-11)
    jax.tree.map(check, run("fused"), run("scan"))


# Of three steps that stand in the loop one after another, where otherwise are eight:
# fewer, as many, more, and twice.
@pytest.mark.parametrize("steps", [2, 3, 5, 6])
def test_other_platforms_layout_gives_the_scans_results(steps, x64, monkeypatch):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((steps, B, I))
    lengths = rng.integers(0, steps + 1, B)

    options = {"bidirectional": True, "proj_size": P, "param_dtype": "float64"}
    variables = StackedLSTM(I, H, **options).init(jax.random.key(0), x)

    def run(implementation):
        lstm = StackedLSTM(I, H, **options, implementation=implementation)

        def loss(variables, x):
            output, state = lstm.apply(variables, x, seq_lengths=lengths)
            return (output**2).sum() + state[1].sum(), output

        return jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(variables, x)

    expected = run("scan")
    chosen = lay_out_as_elsewhere(monkeypatch, unroll=3)
    check = partial(np.testing.assert_allclose, rtol=0, atol=1e-12)
    jax.tree.map(check, run("fused"), expected)
    assert len(chosen) == 4  # Of two directions, forward and backward.


@pytest.mark.parametrize(
    ("steps", "unrolled"), [(7, 7), (28, 14), (784, 14), (100, 10), (31, 8), (3, 8)]
)
def test_other_platforms_loops_have_several_steps_one_after_another(steps, unrolled):
    """As many as divide the steps, so that none are left over."""
    lstm, _, variables = setting(implementation="fused")
    x = jax.ShapeDtypeStruct((steps, B, I), jnp.float32)

    def loss(variables, x):
        return lstm.apply(variables, x)[0].sum()

    jaxpr = jax.make_jaxpr(jax.grad(loss))(variables, x).jaxpr
    conds = [one for one in equations(jaxpr) if one.primitive.name == "cond"]
    found = [
        [
            loop.params["unroll"]
            for loop in equations(branch.jaxpr)
            if loop.primitive.name == "scan"
        ]
        for cond in conds
        for branch in cond.params["branches"]
    ]
    assert [of for of in found if of] == [[1], [unrolled]] * 2


def test_parameters_in_a_box_are_read():
    """Initializers with partitioning metadata leave boxes among the variables."""
    boxed_init = nn.with_partitioning(nn.initializers.normal(), ("in", "out"))
    lstm = StackedLSTM(I, H, implementation="fused", kernel_init=boxed_init)
    x = jnp.ones((T, B, I))
    boxed = lstm.init(jax.random.key(0), x)
    assert isinstance(boxed["params"]["layer_0"]["ii"]["kernel"], nn.Partitioned)
    np.testing.assert_array_equal(
        lstm.apply(boxed, x)[0], lstm.apply(nn.meta.unbox(boxed), x)[0]
    )


# Rematerialisation


def kept_bytes(steps, **options):
    """What XLA sets aside for a gradient over `steps` steps."""
    lstm = StackedLSTM(1, 8, **options)
    x = jax.ShapeDtypeStruct((steps, 64, 1), jnp.float32)
    variables = jax.eval_shape(lstm.init, jax.random.key(0), x)

    def loss(variables, x):
        return lstm.apply(variables, x)[1][0].sum()

    # On a GPU most of it is what libraries of products ask for.
    with jax.default_device(jax.devices("cpu")[0]):
        compiled = jax.jit(jax.grad(loss)).lower(variables, x).compile()
    return compiled.memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize("implementation", ["scan", "fused"])
def test_remat_keeps_less_of_a_long_sequence(implementation):
    whole = kept_bytes(400, implementation=implementation)
    assert kept_bytes(400, implementation=implementation, remat=True) < whole / 2


def test_remat_computes_stretches_of_the_root_of_all_steps_again():
    lstm, _, variables = setting(implementation="scan", remat=True)
    x = jnp.ones((10, B, I))
    jaxpr = jax.make_jaxpr(lstm.apply)(variables, x).jaxpr
    # Two whole ones of ⌈√10⌉ = 4, and the rest.
    lengths = [equation.params["length"] for equation in scans(jaxpr)]
    assert lengths == [2, 4, 2]


@pytest.mark.parametrize("options", [{}, {"proj_size": P}], ids=["plain", "projected"])
def test_the_gradient_of_one_parameter_alone_is_that_among_all(options):
    lstm, x, variables = setting(implementation="fused", **options)
    leaves = flatten_dict(variables["params"])

    @jax.jit
    def loss(some):
        output, _ = lstm.apply({"params": unflatten_dict(leaves | some)}, x)
        return (output**2).sum()

    @jax.jit
    def each_alone(leaves):
        return {n: jax.grad(loss)({n: leaf})[n] for n, leaf in leaves.items()}

    whole, each = jax.grad(loss)(leaves), each_alone(leaves)
    for name, alone in each.items():
        np.testing.assert_allclose(alone, whole[name], rtol=0, atol=1e-5)
        assert np.abs(alone).max() > 1e-4


def test_in_bfloat16_the_inputs_product_is_summed_in_float32():
    lstm, x, variables = setting(implementation="fused", dtype=jnp.bfloat16)
    jaxpr = jax.make_jaxpr(lstm.apply)(variables, x).jaxpr
    before_the_loop = [
        equation.outvars[0].aval.dtype
        for equation in equations(jaxpr)
        if equation.primitive.name == "dot_general"
        and equation.outvars[0].aval.shape[:2] in {(T, B), (T * B, 4 * H), (T * B, H)}
    ]
    assert before_the_loop
    assert set(before_the_loop) == {jnp.dtype("float32")}
