"""Weights from torch and back: exact, complete, and nothing unpickled."""

import itertools
import pickle

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from flax.traverse_util import flatten_dict, unflatten_dict
from kinds import KINDS
from oracle import torch
from torch_classifier import TorchClassifier

from flax_lstm import (
    GRUClassifier,
    LSTMClassifier,
    RNNClassifier,
    StackedLSTM,
    classifier_params_from_torch,
    classifier_params_to_torch,
    params_from_torch,
    params_to_torch,
)

T, B, I, H = 5, 3, 4, 6  # noqa: E741
# The order of float32 sums, at outputs below 1.
TOLERANCE = 1e-6

SIZES = [
    {"num_layers": layers, "bias": bias, "bidirectional": two_ways}
    for layers, bias, two_ways in itertools.product(
        (1, 2, 3), (True, False), (False, True)
    )
]
OPTIONS = [(kind, options) for kind in KINDS for options in SIZES]
OPTIONS += [("lstm", options | {"proj_size": 2}) for options in SIZES]
# One of each kind's biases that are the sum of torch's two.
A_SUM = {"lstm": "hf", "gru": "iz", "rnn_tanh": "i", "rnn_relu": "i"}


def flax_params(kind="lstm", dtype="float32", seed=0, **options):
    """Standard normal weights with one negative zero among the biases."""
    stack = KINDS[kind].build(I, H, **options)
    shapes = jax.eval_shape(stack.init, jax.random.key(0), jnp.zeros((T, B, I)))
    rng = np.random.default_rng(seed)
    params = jax.tree.map(
        lambda s: jnp.asarray(rng.standard_normal(s.shape), dtype), shapes["params"]
    )
    if options.get("bias", True):
        module = params["layer_0"][A_SUM[kind]]
        module["bias"] = module["bias"].at[0].set(-0.0)
    return params


def as_tensors(weights):
    return {name: torch.from_numpy(array) for name, array in weights.items()}


def assert_same_bits(got, expected):
    got, expected = flatten_dict(got, sep="/"), flatten_dict(expected, sep="/")
    assert got.keys() == expected.keys()
    for name, leaf in got.items():
        assert isinstance(leaf, jax.Array)
        assert (leaf.shape, leaf.dtype) == (expected[name].shape, expected[name].dtype)
        assert np.asarray(leaf).tobytes() == np.asarray(expected[name]).tobytes(), name


@pytest.mark.parametrize(("kind", "options"), OPTIONS, ids=str)
def test_flax_to_torch_to_flax_gives_the_same_bits(kind, options):
    params = flax_params(kind, **options)
    model = KINDS[kind].build_in_torch(torch, I, H, **options)
    model.load_state_dict(as_tensors(params_to_torch(params)), strict=True)
    assert_same_bits(params_from_torch(model.state_dict()), params)


@pytest.mark.parametrize("kind", ["lstm", "gru"])
@pytest.mark.parametrize(
    ("dtype", "enabled"), [("float16", False), ("bfloat16", False), ("float64", True)]
)
def test_the_round_trip_keeps_the_dtype(kind, dtype, enabled):
    with jax.enable_x64(enabled):
        params = flax_params(kind, dtype)
        assert_same_bits(params_from_torch(params_to_torch(params)), params)


BIASES = [
    # kind, modules in the order of torch's rows, those of b_hh that keep their own
    ("lstm", ["hi", "hf", "hg", "ho"], []),
    ("gru", ["ir", "iz", "in"], ["hn"]),
    ("rnn_tanh", ["i"], []),
]


@pytest.mark.parametrize(("kind", "of_b_ih", "of_b_hh"), BIASES)
def test_torchs_two_biases_become_their_sum_where_they_may(kind, of_b_ih, of_b_hh):
    model = KINDS[kind].build_in_torch(torch, I, H)
    params = params_from_torch(model.state_dict())["layer_0"]
    b_ih, b_hh = model.bias_ih_l0.detach(), model.bias_hh_l0.detach()
    summed = len(b_ih) - H * len(of_b_hh)
    expected = torch.cat([(b_ih + b_hh)[:summed], b_ih[summed:]])
    ours = np.concatenate([params[name]["bias"] for name in of_b_ih])
    np.testing.assert_array_equal(ours, expected)
    for name in of_b_hh:
        np.testing.assert_array_equal(params[name]["bias"], b_hh[summed:])


@pytest.mark.parametrize("hidden", [1, 3, 4, 12])
@pytest.mark.parametrize("kind", ["lstm", "gru", "rnn_tanh"])
def test_the_kind_is_read_off_the_shapes_at_any_size(kind, hidden):
    """At sizes, too, where the rows alone are those of another kind's."""
    model = KINDS[kind].build_in_torch(torch, 3, hidden)
    params = params_from_torch(model.state_dict())
    shapes = jax.eval_shape(
        KINDS[kind].build(3, hidden).init, jax.random.key(0), jnp.zeros((T, B, 3))
    )
    of_leaf = lambda leaf: leaf.shape  # noqa: E731
    assert jax.tree.map(of_leaf, params) == jax.tree.map(of_leaf, shapes["params"])


def test_a_projection_makes_it_an_lstm_whatever_the_ratio_of_its_shapes():
    """(4·H, P) with H 3 and P 1 has the 12 rows of a GRU of 4 or an RNN of 12."""
    model = torch.nn.LSTM(I, 3, proj_size=1)
    params = params_from_torch(model.state_dict())
    assert params["layer_0"]["hr"]["kernel"].shape == (3, 1)


def test_exported_arrays_are_writable_contiguous_and_their_own():
    params = jax.tree.map(np.array, flax_params(num_layers=2, proj_size=2))
    before = jax.tree.map(np.copy, params)
    weights = params_to_torch(params)
    for name, array in weights.items():
        assert type(array) is np.ndarray, name
        assert array.flags.writeable, name
        assert array.flags.c_contiguous, name
        array[:] = 7.0
    jax.tree.map(np.testing.assert_array_equal, params, before)


def test_imported_arrays_share_no_memory_with_what_they_came_from():
    """JAX may take aligned memory as it is, as it is for a small bias of torch's."""
    model = GRUClassifier(10, I, 16)
    variables = model.init(jax.random.key(0), jnp.ones((1, T, I)))
    weights = {}
    for name, array in classifier_params_to_torch(variables["params"]).items():
        memory = np.zeros(array.nbytes + 64, np.uint8)
        start = -memory.ctypes.data % 64
        aligned = memory[start : start + array.nbytes].view(array.dtype)
        weights[name] = aligned.reshape(array.shape)
        weights[name][...] = array
    params = classifier_params_from_torch(weights)
    before = jax.tree.map(lambda array: np.array(array, copy=True), params)
    for array in weights.values():
        array += 1
    jax.tree.map(np.testing.assert_array_equal, params, before)


def test_a_prefix_is_put_before_the_names_and_taken_off_again():
    params = flax_params()
    weights = params_to_torch(params, "encoder.lstm.")
    assert weights.keys() == {f"encoder.lstm.{n}" for n in params_to_torch(params)}
    others = {
        "encoder.norm.weight": np.ones(3),
        "decoder.lstm.weight_ih_l0": np.ones(3),
    }
    assert_same_bits(params_from_torch(weights | others, "encoder.lstm."), params)


def test_bfloat16_tensors_stay_bfloat16():
    model = torch.nn.LSTM(I, H).to(torch.bfloat16)
    params = params_from_torch(model.state_dict())
    expected = params_from_torch(model.to(torch.float32).state_dict())
    kernel = params["layer_0"]["ig"]["kernel"]
    assert kernel.dtype == jnp.bfloat16
    np.testing.assert_array_equal(
        kernel.astype(jnp.float32), expected["layer_0"]["ig"]["kernel"]
    )


def safetensors_save_file():
    return pytest.importorskip(
        "safetensors.torch", reason="writes the file to be read"
    ).save_file


@pytest.mark.parametrize("kind", [str, lambda path: path], ids=["str", "Path"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_safetensors_file(tmp_path, kind, dtype):
    save_file = safetensors_save_file()
    model = torch.nn.LSTM(I, H, 2).to(dtype)
    path = tmp_path / "lstm.safetensors"
    save_file(model.state_dict(), path)
    assert_same_bits(
        params_from_torch(kind(path)), params_from_torch(model.state_dict())
    )


class Trap:
    """Creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("read", [params_from_torch, classifier_params_from_torch])
@pytest.mark.parametrize("save", ["pickle", "torch"])
def test_a_pickle_is_refused_and_not_loaded(tmp_path, read, save):
    path, sprung = tmp_path / "lstm.pth", tmp_path / "sprung"
    if save == "pickle":
        path.write_bytes(pickle.dumps({"weight_ih_l0": Trap(sprung)}))
    else:
        torch.save({"weight_ih_l0": Trap(sprung)}, path)
    with pytest.raises(ValueError, match=r"expected a \.safetensors file.*safetensors"):
        read(path)
    assert not sprung.exists()
    # The trap does work.
    if save == "pickle":
        pickle.loads(path.read_bytes())["weight_ih_l0"].close()
        assert sprung.exists()


def test_a_file_that_is_not_there_or_a_folder(tmp_path):
    message = r"^state_dict: expected a \.safetensors file, got .*file\.safetensors"
    with pytest.raises(FileNotFoundError, match=message):
        params_from_torch("/no/such/file.safetensors")
    message = r"^state_dict: expected a \.safetensors file, got .* \(Is a directory\)$"
    with pytest.raises(IsADirectoryError, match=message):
        params_from_torch(tmp_path)


def test_a_file_with_a_dtype_that_numpy_lacks_is_not_called_a_pickle(tmp_path):
    save_file = safetensors_save_file()
    path = tmp_path / "lstm.safetensors"
    weights = torch.nn.LSTM(I, H).to(torch.float8_e4m3fn).state_dict()
    save_file(weights, path)
    message = (
        r"^state_dict: expected dtypes that NumPy has, got .*\(.*float8_e4m3fn'\)$"
    )
    with pytest.raises(TypeError, match=message):
        params_from_torch(path)


def test_weights_may_have_any_byte_order():
    weights = {k: v.numpy() for k, v in torch.nn.LSTM(I, H).state_dict().items()}
    swapped = {k: v.astype(v.dtype.newbyteorder()) for k, v in weights.items()}
    assert_same_bits(params_from_torch(swapped), params_from_torch(weights))


@pytest.mark.parametrize("source", [None, 3, [("weight_ih_l0", 1)]])
def test_something_else_than_a_mapping_or_a_path(source):
    with pytest.raises(TypeError, match=r"^state_dict: expected a mapping"):
        params_from_torch(source)


GOOD = {k: v.numpy() for k, v in torch.nn.LSTM(I, H, 2).state_dict().items()}


@pytest.mark.parametrize("prefix", [None, 3])
def test_a_prefix_is_a_string(prefix):
    message = "^prefix: expected a string, got "
    with pytest.raises(TypeError, match=message):
        params_from_torch(GOOD, prefix)
    with pytest.raises(TypeError, match=message):
        params_to_torch(params_from_torch(GOOD), prefix)


def without(*names):
    return {k: v for k, v in GOOD.items() if k not in names}


WRONG_STATE_DICTS = {
    "empty": ({}, r"missing bias_hh_l0, bias_ih_l0, weight_hh_l0, weight_ih_l0$"),
    "missing": (without("weight_hh_l1"), r"missing weight_hh_l1$"),
    "a_cell": (
        {k: np.ones(12) for k in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")},
        r"names such as weight_ih_l0, got those of a single cell, weight_ih; add _l0",
    ),
    "two_missing": (
        without("bias_hh_l0", "weight_ih_l1"),
        r"missing bias_hh_l0, weight_ih_l1$",
    ),
    "unexpected": (GOOD | {"dense.weight": np.ones(3)}, r"unexpected dense\.weight$"),
    "both": (
        without("bias_hh_l0") | {"surplus": np.ones(3)},
        r"missing bias_hh_l0; unexpected surplus$",
    ),
    "gap": (
        {k: v for k, v in GOOD.items() if "l0" not in k},
        r"missing .*weight_ih_l0.*unexpected .*weight_ih_l1",
    ),
    "reverse_of_one_layer": (
        GOOD | {"weight_ih_l0_reverse": GOOD["weight_ih_l0"]},
        r"missing .*weight_hh_l0_reverse.*weight_ih_l1_reverse$",
    ),
    "misshaped": (
        GOOD | {"weight_hh_l0": np.ones((24, 5))},
        r"wrong shapes: weight_hh_l0 expected \(24, 6\), got \(24, 5\)$",
    ),
    "misshaped_as_three_gates_and_more": (
        GOOD | {"weight_hh_l0": np.ones((23, 6))},
        r"wrong shapes: weight_hh_l0 expected \(24, 6\), got \(23, 6\)$",
    ),
    "two_misshaped": (
        GOOD | {"bias_ih_l0": np.ones(23), "weight_ih_l1": np.ones((24, 4))},
        r"bias_ih_l0 expected \(24,\), got \(23,\); "
        r"weight_ih_l1 expected \(24, 6\), got \(24, 4\)$",
    ),
    "not_four_gates": (
        GOOD | {"weight_ih_l0": np.ones((23, 4))},
        r"weight_ih_l0 expected \(20, 4\), got \(23, 4\)",
    ),
    "scalar": (GOOD | {"weight_ih_l0": np.ones(())}, r"wrong shapes: .*got \(\)"),
    "no_kind": (
        GOOD | {f"weight_hh_l{k}": np.ones((12, 6)) for k in (0, 1)},
        r"wrong shapes: weight_hh_l0 expected \(4·H, H\) of an LSTM, \(3·H, H\) of a "
        r"GRU or \(H, H\) of an RNN, got \(12, 6\)$",
    ),
    "projection_left_out": (
        {
            k: v.numpy()
            for k, v in torch.nn.LSTM(I, H, proj_size=3).state_dict().items()
            if k != "weight_hr_l0"
        },
        r"weight_hh_l0 expected .*, got \(24, 3\)$",
    ),
    "gru_misshaped": (
        {k: v.numpy() for k, v in torch.nn.GRU(I, H).state_dict().items()}
        | {"bias_hh_l0": np.ones(24)},
        r"wrong shapes: bias_hh_l0 expected \(18,\), got \(24,\)$",
    ),
}


@pytest.mark.parametrize(
    ("weights", "message"), WRONG_STATE_DICTS.values(), ids=WRONG_STATE_DICTS
)
def test_wrong_state_dicts_are_listed(weights, message):
    with pytest.raises(ValueError, match="^state_dict: .*" + message):
        params_from_torch(weights)


@pytest.mark.parametrize("given", ["", "enc", "dec.", "enc.lstm"])
def test_another_prefix_than_the_names_have_is_refused_with_theirs(given):
    weights = {f"enc.lstm.{name}": array for name, array in GOOD.items()}
    message = rf"^prefix: expected 'enc\.lstm\.', .*weight_ih_l0, got '{given}'"
    with pytest.raises(ValueError, match=message):
        params_from_torch(weights, given)
    assert params_from_torch(weights, "enc.lstm.").keys() == {"layer_0", "layer_1"}


@pytest.mark.parametrize("dtype", [np.int8, np.complex64])
def test_weights_that_are_no_floating_point_numbers_are_refused(dtype):
    weights = GOOD | {"weight_hh_l1": GOOD["weight_hh_l1"].astype(dtype)}
    message = rf"^state_dict: expected floating.*, got weight_hh_l1 {np.dtype(dtype)}$"
    with pytest.raises(TypeError, match=message):
        params_from_torch(weights)


def test_an_entry_that_is_no_array_is_refused():
    with pytest.raises(TypeError, match=r"^state_dict: expected an array for bias_hh"):
        params_from_torch(GOOD | {"bias_hh_l0": torch.zeros(4 * H, device="meta")})


def test_the_prefix_is_in_the_message():
    weights = {"enc." + k: v for k, v in without("weight_hh_l1").items()}
    with pytest.raises(ValueError, match=r"missing enc\.weight_hh_l1$"):
        params_from_torch(weights, "enc.")


def changed(path, value, kind="lstm"):
    """The good params with one leaf replaced, or left out if the value is None."""
    flat = flatten_dict(flax_params(kind, num_layers=2), sep="/") | {path: value}
    flat = {k: v for k, v in flat.items() if v is not None}
    return unflatten_dict(flat, sep="/")


WRONG_PARAMS = {
    "empty": ({}, r"missing layer_0/hf/bias, .*layer_0/io/kernel$"),
    "missing": (changed("layer_1/hg/kernel", None), r"missing layer_1/hg/kernel$"),
    "unexpected": (
        changed("layer_1/ii/bias", jnp.ones(H)),
        r"unexpected layer_1/ii/bias$",
    ),
    "gate": (
        changed("layer_1/hg/kernel", jnp.ones((H, H + 1))),
        r"layer_1/hg/kernel expected \(6, 6\), got \(6, 7\)$",
    ),
    "gru_missing": (
        changed("layer_0/hn/bias", None, "gru"),
        r"missing layer_0/hn/bias$",
    ),
    "rnn_projection": (
        changed("layer_0/hr/kernel", jnp.ones((H, 2)), "rnn_tanh"),
        r"unexpected layer_0/hr/kernel$",
    ),
}


@pytest.mark.parametrize(("params", "message"), WRONG_PARAMS.values(), ids=WRONG_PARAMS)
def test_wrong_params_are_listed(params, message):
    with pytest.raises(ValueError, match="^params: .*" + message):
        params_to_torch(params)


def test_names_are_strings():
    with pytest.raises(TypeError, match=r"^params: expected strings as names, got 0$"):
        params_to_torch({0: flax_params()["layer_0"]})


def test_the_params_with_their_collection_name_around_them_are_refused():
    with pytest.raises(ValueError, match=r"^params: .* pass variables\['params'\]"):
        params_to_torch({"params": flax_params()})


def test_the_params_around_a_stacks_are_refused_with_where_it_is():
    params = classifier("lstm").init(jax.random.key(0), batch())["params"]
    message = r"^params: .* pass params\['lstm'\], or all of it to classifier_params_"
    with pytest.raises(ValueError, match=message):
        params_to_torch(params)
    inner = {"encoder": {"rnn": params["lstm"]}, "decoder": {"kernel": jnp.ones(3)}}
    with pytest.raises(ValueError, match=r"pass params\['encoder'\]\['rnn'\]$"):
        params_to_torch(inner)
    with pytest.raises(ValueError, match=r"^params: .* pass variables\['params'\]$"):
        classifier_params_to_torch({"params": params})


def test_an_nnx_state_is_refused_with_what_to_do():
    model = nnx.bridge.ToNNX(StackedLSTM(I, H), rngs=nnx.Rngs(0))
    nnx.bridge.lazy_init(model, batch())
    state = nnx.state(model, nnx.Param)
    with pytest.raises(
        TypeError, match=r"^params: .* pass nnx\.to_pure_dict\(state\)$"
    ):
        params_to_torch(state)
    assert "weight_ih_l0" in params_to_torch(nnx.to_pure_dict(state))


def test_parameters_in_a_box_are_read_and_shapes_alone_are_refused():
    boxed = nn.with_partitioning(nn.initializers.normal(), ("in", "out"))
    stack = StackedLSTM(I, H, kernel_init=boxed)
    params = stack.init(jax.random.key(0), jnp.zeros((T, B, I)))["params"]
    got, expected = map(params_to_torch, (params, nn.meta.unbox(params)))
    jax.tree.map(np.testing.assert_array_equal, got, expected)
    shapes = jax.eval_shape(stack.init, jax.random.key(0), jnp.zeros((T, B, I)))
    message = r"^params: expected an array for layer_0/.*, got a ShapeDtypeStruct"
    with pytest.raises(TypeError, match=message):
        params_to_torch(nn.meta.unbox(shapes["params"]))


def test_an_ensembles_weights_are_refused_with_what_to_do():
    params = flax_params()
    members = jax.tree.map(lambda a: jnp.stack([a, -a]), params)
    message = (
        r"^params: expected those of one model, got those of 2 along a leading axis; "
        r"convert each alone, the first as jax\.tree\.map\(lambda a: a\[0\], params\)$"
    )
    with pytest.raises(ValueError, match=message):
        params_to_torch(members)
    assert params_to_torch(jax.tree.map(lambda a: a[0], members))
    head = {"kernel": jnp.ones((2, H, 3)), "bias": jnp.ones((2, 3))}
    with pytest.raises(ValueError, match=message):
        classifier_params_to_torch({"lstm": members, "head": head})

    models = [torch.nn.LSTM(I, H) for _ in range(3)]
    state_dict, _ = torch.func.stack_module_state(models)
    with pytest.raises(ValueError, match=r"^state_dict: .* got those of 3 along"):
        params_from_torch(state_dict)
    assert params_from_torch({k: v[0] for k, v in state_dict.items()})
    of_classifier = {f"encoder.{name}": array for name, array in state_dict.items()}
    of_classifier |= {
        "debias.weight": torch.ones(3, 2, H),
        "debias.bias": torch.ones(3, 2),
    }
    with pytest.raises(ValueError, match=r"^state_dict: .* got those of 3 along"):
        classifier_params_from_torch(of_classifier)


CLASSIFIERS = {
    "lstm": LSTMClassifier,
    "gru": GRUClassifier,
    "rnn_relu": RNNClassifier,
}
CLASSIFIER_OPTIONS = [
    ("lstm", {"num_layers": 2}),
    ("lstm", {"num_layers": 1, "bidirectional": True}),
    ("lstm", {"num_layers": 2, "bidirectional": True, "proj_size": 2, "bias": False}),
    ("lstm", {"num_layers": 2, "bidirectional": True, "pooling": "final"}),
    ("lstm", {"num_layers": 1, "pooling": "mean"}),
    ("lstm", {"num_layers": 1, "bidirectional": True, "pooling": "attention"}),
    ("gru", {"num_layers": 2}),
    ("gru", {"num_layers": 1, "pooling": "attention"}),
    ("rnn_relu", {"num_layers": 1, "bidirectional": True}),
    ("rnn_relu", {"num_layers": 1, "pooling": "attention"}),
]


def classifier(kind, **options):
    """Ours, of the sizes of `TorchClassifier`."""
    options = {"num_classes": 3, "input_size": I, "hidden_size": H} | options
    return CLASSIFIERS[kind](**options, **KINDS[kind].options)


def batch():
    return np.random.default_rng(0).standard_normal((B, T, I)).astype(np.float32)


@pytest.mark.parametrize(("kind", "options"), CLASSIFIER_OPTIONS, ids=str)
def test_classifier_from_torch_gives_torchs_logits(kind, options):
    torch.manual_seed(0)
    model = TorchClassifier(kind, (I, H), **options)
    params = classifier_params_from_torch(model.state_dict())
    with torch.no_grad():
        expected = model(torch.from_numpy(batch()))
    logits = classifier(kind, **options).apply({"params": params}, batch())
    np.testing.assert_allclose(logits, expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(("kind", "options"), CLASSIFIER_OPTIONS, ids=str)
def test_classifier_to_torch_gives_flaxs_logits_and_the_same_bits_back(kind, options):
    ours = classifier(kind, **options)
    variables = ours.init(jax.random.key(0), batch())
    weights = classifier_params_to_torch(variables["params"])
    assert all(w.flags.writeable and w.flags.c_contiguous for w in weights.values())
    model = TorchClassifier(kind, (I, H), **options)
    model.load_state_dict(as_tensors(weights), strict=True)
    with torch.no_grad():
        logits = model(torch.from_numpy(batch()))
    np.testing.assert_allclose(
        logits, ours.apply(variables, batch()), rtol=0, atol=TOLERANCE
    )
    assert_same_bits(
        classifier_params_from_torch(model.state_dict()), variables["params"]
    )


POOLED = [
    # kind, pooling, batch_first, bidirectional
    *(
        ("lstm", "last", first, both)
        for first in (True, False)
        for both in (True, False)
    ),
    ("lstm", "mean", True, True),
    ("lstm", "final", True, True),
    ("gru", "final", False, True),
    ("lstm", "attention", False, False),
    ("gru", "last", True, False),
    ("gru", "attention", True, True),
    ("rnn_relu", "mean", False, False),
]


@pytest.mark.parametrize(("kind", "pooling", "batch_first", "bidirectional"), POOLED)
def test_classifier_with_lengths_pools_each_rows_own_steps(
    kind, pooling, batch_first, bidirectional
):
    """As torch does for the row alone, cut to its length; a row of none reads zeros."""
    torch.manual_seed(0)
    options = {"num_layers": 2, "bidirectional": bidirectional, "pooling": pooling}
    model = TorchClassifier(kind, (I, H), **options)
    ours = classifier(kind, batch_first=batch_first, **options)
    x, lengths = batch(), np.array([2, 0, T])
    padded = np.where(np.arange(T)[:, None] < lengths[:, None, None], x, np.nan)
    logits = ours.apply(
        {"params": classifier_params_from_torch(model.state_dict())},
        padded if batch_first else padded.swapaxes(0, 1),
        seq_lengths=lengths,
    )
    with torch.no_grad():
        for row in (0, 2):
            alone = model(torch.from_numpy(x[row : row + 1, : lengths[row]]))[0]
            np.testing.assert_allclose(logits[row], alone, rtol=0, atol=TOLERANCE)
        empty = model.head.bias
        np.testing.assert_allclose(logits[1], empty, rtol=0, atol=TOLERANCE)


def good_classifier():
    return {
        k: v.numpy() for k, v in TorchClassifier("lstm", (I, H)).state_dict().items()
    }


WRONG_CLASSIFIERS = {
    "no_lstm_key": ({"lstm.bias_hh_l0": None}, r"missing lstm\.bias_hh_l0$"),
    "other_spelling": (
        {"head.bias": None, "classifier.bias": np.ones(3)},
        r"expected one Linear .*, got 'classifier' and 'head'",
    ),
    "head_width": (
        {"head.weight": np.ones((3, 5))},
        r"head\.weight expected \(3, 6\), got \(3, 5\)$",
    ),
    "head_bias": (
        {"head.bias": np.ones(4)},
        r"head\.bias expected \(3,\), got \(4,\)$",
    ),
    "two_heads": (
        {"fc.0.weight": np.ones((6, 6)), "fc.0.bias": np.ones(6)},
        r"one Linear .*, got 'fc\.0' and 'head'; convert the stack alone, by ",
    ),
    "no_linear": (
        {"head.weight": None, "head.bias": None},
        r"expected one Linear .* besides the stack 'lstm', got none",
    ),
    "lstm_shape": (
        {"lstm.weight_hh_l0": np.ones((24, 5))},
        r"lstm\.weight_hh_l0 expected \(24, 6\), got \(24, 5\)$",
    ),
    "half_an_attention": (
        {"attention.weight": np.ones((6, 6)), "query.weight": np.ones((1, 6))},
        r"missing attention\.bias$",
    ),
    "wide_query": (
        {
            "attention.weight": np.ones((6, 6)),
            "attention.bias": np.ones(6),
            "query.weight": np.ones((2, 6)),
        },
        r"query\.weight expected \(1, 6\), got \(2, 6\)$",
    ),
    "two_stacks": (
        {"gru.weight_ih_l0": np.ones((18, 4))},
        r"one LSTM, GRU or RNN, .*, got 'gru\.weight_ih_l0' and 'lstm\.weight_ih_l0'",
    ),
    "a_stack_without_a_name": (
        {"lstm.weight_ih_l0": None, "weight_ih_l0": np.ones((24, 4))},
        r"a module of its own beside a Linear, got 'weight_ih_l0'; .* prefix=''$",
    ),
    "another_cell": (
        {"lstm.weight_hh_l0": np.ones((18, 6))},
        r"lstm\.weight_hh_l0 expected \(24, 8\), got \(18, 6\)$",
    ),
}


@pytest.mark.parametrize(
    ("changes", "message"), WRONG_CLASSIFIERS.values(), ids=WRONG_CLASSIFIERS
)
def test_wrong_classifier_state_dicts_are_listed(changes, message):
    weights = {k: v for k, v in (good_classifier() | changes).items() if v is not None}
    with pytest.raises(ValueError, match="^state_dict: .*" + message):
        classifier_params_from_torch(weights)


@pytest.mark.parametrize("head", [None, "head"])
def test_a_head_without_a_bias_gets_zeros(head):
    weights = good_classifier()
    expected = classifier_params_from_torch(
        weights | {"head.bias": np.zeros_like(weights["head.bias"])}
    )
    del weights["head.bias"]
    assert_same_bits(classifier_params_from_torch(weights, head=head), expected)


@pytest.mark.parametrize("head", [None, "head"])
def test_a_head_under_weight_norm_is_listed_as_what_it_lacks(head):
    weights = good_classifier()
    kernel = weights.pop("head.weight")
    for name in ("weight_g", "weight_v"):
        old = weights | {f"head.{name}": kernel}
        message = rf"missing head\.weight; unexpected head\.{name}$"
        with pytest.raises(ValueError, match=message):
            classifier_params_from_torch(old, head=head)


def test_no_weights_at_all_are_no_classifier():
    message = r"^state_dict: expected the weights of a classifier, got none$"
    with pytest.raises(ValueError, match=message):
        classifier_params_from_torch({})


def test_a_head_of_another_name_is_read_and_written_by_it():
    weights = good_classifier()
    renamed = {k.replace("head", "fc"): v for k, v in weights.items()}
    expected = classifier_params_from_torch(weights)
    for options in ({}, {"head": "fc"}):
        params = classifier_params_from_torch(renamed, **options)
        assert_same_bits(params, expected)
    assert classifier_params_to_torch(params, head="fc").keys() == renamed.keys()
    message = r"^head: expected 'fc', the name of the Linear .*, got 'head'$"
    with pytest.raises(ValueError, match=message):
        classifier_params_from_torch(renamed, head="head")
    spelt = {"classifier.bias": weights.pop("head.bias"), **weights}
    message = r"missing head\.bias; unexpected classifier\.bias$"
    with pytest.raises(ValueError, match=message):
        classifier_params_from_torch(spelt, head="head")
    with pytest.raises(TypeError, match=r"^head: expected a string, got 3$"):
        classifier_params_from_torch(renamed, head=3)


@pytest.mark.parametrize("head", ["query", "attention"])
def test_a_head_may_have_the_name_of_an_attentions_module(head):
    expected = classifier_params_from_torch(good_classifier())
    weights = classifier_params_to_torch(expected, head=head)
    for options in ({}, {"head": head}):
        assert_same_bits(classifier_params_from_torch(weights, **options), expected)


@pytest.mark.parametrize("head", ["query", "attention", "lstm"])
def test_a_head_does_not_have_the_name_of_another_module(head):
    model = TorchClassifier("lstm", (I, H), pooling="attention")
    params = classifier_params_from_torch(model.state_dict())
    message = rf"^head: expected a name that no other module has .*, got '{head}'$"
    with pytest.raises(ValueError, match=message):
        classifier_params_to_torch(params, head=head)


@pytest.mark.parametrize("pooling", ["last", "attention"])
def test_a_classifier_inside_another_module_is_read_and_written(pooling):
    """As torch.nn.DataParallel and torch.compile name it."""
    model = TorchClassifier("lstm", (I, H), pooling=pooling)
    expected = classifier_params_from_torch(model.state_dict())
    wrapped = torch.nn.DataParallel(model).state_dict()
    names = {"head": "module.head", "stack": "module.lstm"}
    for options in ({}, names):
        assert_same_bits(classifier_params_from_torch(wrapped, **options), expected)
    assert classifier_params_to_torch(expected, **names).keys() == wrapped.keys()


def test_attention_is_where_the_ways_to_stack_and_head_part():
    model = TorchClassifier("lstm", (I, H), pooling="attention")
    params = classifier_params_from_torch(model.state_dict())
    for within, head in (("net.m.", "net.m.fc"), ("", "b.m.fc"), ("a.", "a.b.m.fc")):
        stack = f"{within or 'a.m.'}rnn"
        names = {"head": head, "stack": stack}
        weights = classifier_params_to_torch(params, **names)
        assert f"{within}attention.weight" in weights
        assert_same_bits(classifier_params_from_torch(weights, **names), params)


@pytest.mark.parametrize("kind", CLASSIFIERS)
@pytest.mark.parametrize("name", ["rnn", "gru", "net", "encoder.lstm"])
def test_a_stack_of_another_name_is_read_and_written_by_it(kind, name):
    """The shapes tell which cell it is, as for a stack alone."""
    weights = TorchClassifier(kind, (I, H)).state_dict()
    cell = kind.partition("_")[0]
    renamed = {k.replace(f"{cell}.", f"{name}."): v for k, v in weights.items()}
    expected = classifier_params_from_torch(weights)
    for options in ({}, {"stack": name}):
        params = classifier_params_from_torch(renamed, **options)
        assert_same_bits(params, expected)
    assert classifier_params_to_torch(params, stack=name).keys() == renamed.keys()
    message = rf"^stack: expected '{name}', the name of the LSTM, .*, got 'other'$"
    with pytest.raises(ValueError, match=message):
        classifier_params_from_torch(renamed, stack="other")
    with pytest.raises(TypeError, match=r"^stack: expected a string, got 3$"):
        classifier_params_from_torch(renamed, stack=3)
    with pytest.raises(TypeError, match=r"^stack: expected a string, got 0$"):
        classifier_params_to_torch(params, stack=0)


def test_a_classifier_without_a_head_is_listed():
    params = classifier_params_from_torch(good_classifier())
    del params["head"]
    with pytest.raises(ValueError, match=r"^params: missing head/bias, head/kernel"):
        classifier_params_to_torch(params)
