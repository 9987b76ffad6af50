"""Weights from torch and back: exact, complete, and nothing unpickled."""

import itertools
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from flax_lstm import (
    LSTMClassifier,
    StackedLSTM,
    classifier_params_from_torch,
    classifier_params_to_torch,
    params_from_torch,
    params_to_torch,
)

torch = pytest.importorskip("torch", reason="torch is the oracle of this module")

T, B, I, H = 5, 3, 4, 6  # noqa: E741
# The order of float32 sums, at outputs below 1.
TOLERANCE = 1e-6

OPTIONS = [
    {"num_layers": layers, "bias": bias, "bidirectional": two_ways, "proj_size": proj}
    for layers, bias, two_ways, proj in itertools.product(
        (1, 2, 3), (True, False), (False, True), (0, 2)
    )
]


def flax_params(dtype="float32", seed=0, **options):
    """Standard normal weights with one negative zero among the biases."""
    lstm = StackedLSTM(I, H, **options)
    shapes = jax.eval_shape(lstm.init, jax.random.key(0), jnp.zeros((T, B, I)))
    rng = np.random.default_rng(seed)
    params = jax.tree.map(
        lambda s: jnp.asarray(rng.standard_normal(s.shape), dtype), shapes["params"]
    )
    if options.get("bias", True):
        bias = params["layer_0"]["hf"]["bias"]
        params["layer_0"]["hf"]["bias"] = bias.at[0].set(-0.0)
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


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_flax_to_torch_to_flax_gives_the_same_bits(options):
    params = flax_params(**options)
    model = torch.nn.LSTM(I, H, **options)
    model.load_state_dict(as_tensors(params_to_torch(params)), strict=True)
    assert_same_bits(params_from_torch(model.state_dict()), params)


@pytest.mark.parametrize(
    ("dtype", "enabled"), [("float16", False), ("bfloat16", False), ("float64", True)]
)
def test_the_round_trip_keeps_the_dtype(dtype, enabled):
    with jax.enable_x64(enabled):
        params = flax_params(dtype)
        assert_same_bits(params_from_torch(params_to_torch(params)), params)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_layers": 2, "bidirectional": True, "proj_size": 2},
        {"num_layers": 3, "bias": False},
    ],
    ids=str,
)
def test_a_torch_model_with_the_exported_weights_gives_the_same_output(options):
    params = flax_params(**options)
    model = torch.nn.LSTM(I, H, **options)
    model.load_state_dict(as_tensors(params_to_torch(params)))
    x = np.random.default_rng(0).standard_normal((T, B, I)).astype(np.float32)
    output, _ = StackedLSTM(I, H, **options).apply({"params": params}, x)
    with torch.no_grad():
        expected, _ = model(torch.from_numpy(x))
    np.testing.assert_allclose(output, expected, rtol=0, atol=TOLERANCE)


def test_torchs_two_biases_become_their_sum():
    model = torch.nn.LSTM(I, H)
    params = params_from_torch(model.state_dict())
    total = (model.bias_ih_l0 + model.bias_hh_l0).detach()
    ours = np.concatenate([params["layer_0"][f"h{g}"]["bias"] for g in "ifgo"])
    np.testing.assert_array_equal(ours, total)


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


def test_imported_arrays_do_not_follow_the_torch_model():
    model = torch.nn.LSTM(I, H, proj_size=2)
    params = params_from_torch(model.state_dict())
    before = jax.tree.map(np.array, params)
    with torch.no_grad():
        for weight in model.parameters():
            weight.zero_()
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


@pytest.mark.parametrize("kind", [str, lambda path: path], ids=["str", "Path"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_safetensors_file(tmp_path, kind, dtype):
    save_file = pytest.importorskip(
        "safetensors.torch", reason="writes the file to be read"
    ).save_file
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


def test_a_file_that_is_not_there():
    with pytest.raises(FileNotFoundError):
        params_from_torch("/no/such/file.safetensors")


@pytest.mark.parametrize("source", [None, 3, [("weight_ih_l0", 1)]])
def test_something_else_than_a_mapping_or_a_path(source):
    with pytest.raises(TypeError, match=r"^state_dict: expected a mapping"):
        params_from_torch(source)


GOOD = {k: v.numpy() for k, v in torch.nn.LSTM(I, H, 2).state_dict().items()}


def without(*names):
    return {k: v for k, v in GOOD.items() if k not in names}


WRONG_STATE_DICTS = {
    "empty": ({}, r"missing bias_hh_l0, bias_ih_l0, weight_hh_l0, weight_ih_l0$"),
    "missing": (without("weight_hh_l1"), r"missing weight_hh_l1$"),
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
}


@pytest.mark.parametrize(
    ("weights", "message"), WRONG_STATE_DICTS.values(), ids=WRONG_STATE_DICTS
)
def test_wrong_state_dicts_are_listed(weights, message):
    with pytest.raises(ValueError, match="^state_dict: .*" + message):
        params_from_torch(weights)


def test_the_prefix_is_in_the_message():
    weights = {"enc." + k: v for k, v in without("weight_hh_l1").items()}
    with pytest.raises(ValueError, match=r"missing enc\.weight_hh_l1$"):
        params_from_torch(weights, "enc.")


def changed(path, value):
    """The good params with one leaf replaced, or left out if the value is None."""
    flat = flatten_dict(flax_params(num_layers=2), sep="/")
    flat |= {path: value}
    flat = {k: v for k, v in flat.items() if v is not None}
    tree = {}
    for name, leaf in flat.items():
        layer, gate, kind = name.split("/")
        tree.setdefault(layer, {}).setdefault(gate, {})[kind] = leaf
    return tree


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
}


@pytest.mark.parametrize(("params", "message"), WRONG_PARAMS.values(), ids=WRONG_PARAMS)
def test_wrong_params_are_listed(params, message):
    with pytest.raises(ValueError, match="^params: .*" + message):
        params_to_torch(params)


def test_the_params_with_their_collection_name_around_them_are_refused():
    with pytest.raises(ValueError, match=r"^params: .*unexpected params/layer_0"):
        params_to_torch({"params": flax_params()})


class TorchClassifier(torch.nn.Module):
    """The study notes' model; the attribute is spelt as there."""

    def __init__(self, num_classes=3, **options):
        super().__init__()
        self.lstm = torch.nn.LSTM(I, H, batch_first=True, **options)
        width = options.get("proj_size") or H
        width *= 2 if options.get("bidirectional") else 1
        self.classifer = torch.nn.Linear(width, num_classes)

    def forward(self, x):
        out, _ = self.lstm(x)
        return self.classifer(out[:, -1, :])


CLASSIFIERS = [
    {"num_layers": 2},
    {"num_layers": 1, "bidirectional": True},
    {"num_layers": 2, "bidirectional": True, "proj_size": 2, "bias": False},
]


def batch():
    return np.random.default_rng(0).standard_normal((B, T, I)).astype(np.float32)


@pytest.mark.parametrize("options", CLASSIFIERS, ids=str)
def test_classifier_from_torch_gives_torchs_logits(options):
    torch.manual_seed(0)
    model = TorchClassifier(**options)
    ours = LSTMClassifier(num_classes=3, input_size=I, hidden_size=H, **options)
    params = classifier_params_from_torch(model.state_dict())
    with torch.no_grad():
        expected = model(torch.from_numpy(batch()))
    np.testing.assert_allclose(
        ours.apply({"params": params}, batch()), expected, rtol=0, atol=TOLERANCE
    )


@pytest.mark.parametrize("options", CLASSIFIERS, ids=str)
def test_classifier_to_torch_gives_flaxs_logits_and_the_same_bits_back(options):
    ours = LSTMClassifier(num_classes=3, input_size=I, hidden_size=H, **options)
    variables = ours.init(jax.random.key(0), batch())
    weights = classifier_params_to_torch(variables["params"])
    assert all(w.flags.writeable and w.flags.c_contiguous for w in weights.values())
    model = TorchClassifier(**options)
    model.load_state_dict(as_tensors(weights), strict=True)
    with torch.no_grad():
        logits = model(torch.from_numpy(batch()))
    np.testing.assert_allclose(
        logits, ours.apply(variables, batch()), rtol=0, atol=TOLERANCE
    )
    assert_same_bits(
        classifier_params_from_torch(model.state_dict()), variables["params"]
    )


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("bidirectional", [True, False])
def test_classifier_with_lengths_takes_each_rows_own_last_output(
    batch_first, bidirectional
):
    """As torch does for the row alone, cut to its length; a row of none reads zeros."""
    torch.manual_seed(0)
    options = {"num_layers": 2, "bidirectional": bidirectional}
    model = TorchClassifier(**options)
    ours = LSTMClassifier(
        num_classes=3, input_size=I, hidden_size=H, batch_first=batch_first, **options
    )
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
        empty = model.classifer.bias
        np.testing.assert_allclose(logits[1], empty, rtol=0, atol=TOLERANCE)


def good_classifier():
    return {k: v.numpy() for k, v in TorchClassifier().state_dict().items()}


WRONG_CLASSIFIERS = {
    "no_head": ({"classifer.bias": None}, r"missing classifer\.bias$"),
    "no_lstm_key": ({"lstm.bias_hh_l0": None}, r"missing lstm\.bias_hh_l0$"),
    "other_spelling": (
        {"classifer.bias": None, "classifier.bias": np.ones(3)},
        r"missing classifer\.bias; unexpected classifier\.bias$",
    ),
    "head_width": (
        {"classifer.weight": np.ones((3, 5))},
        r"classifer\.weight expected \(3, 6\), got \(3, 5\)$",
    ),
    "head_bias": (
        {"classifer.bias": np.ones(4)},
        r"classifer\.bias expected \(3,\), got \(4,\)$",
    ),
    "lstm_shape": (
        {"lstm.weight_hh_l0": np.ones((24, 5))},
        r"lstm\.weight_hh_l0 expected \(24, 6\), got \(24, 5\)$",
    ),
}


@pytest.mark.parametrize(
    ("changes", "message"), WRONG_CLASSIFIERS.values(), ids=WRONG_CLASSIFIERS
)
def test_wrong_classifier_state_dicts_are_listed(changes, message):
    weights = {k: v for k, v in (good_classifier() | changes).items() if v is not None}
    with pytest.raises(ValueError, match="^state_dict: .*" + message):
        classifier_params_from_torch(weights)


def test_a_classifier_without_a_head_is_listed():
    params = classifier_params_from_torch(good_classifier())
    del params["head"]
    with pytest.raises(ValueError, match=r"^params: missing head/bias, head/kernel"):
        classifier_params_to_torch(params)
