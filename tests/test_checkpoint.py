"""A checkpoint says which classifier it holds, and gives it back."""

import errno
import json
import os
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from flax_lstm import (
    GRUClassifier,
    LSTMClassifier,
    RNNClassifier,
    checkpoint,
    load_classifier,
)
from flax_lstm.checkpoint import (
    FORMAT_VERSION,
    PARAMS,
    DamagedCheckpointError,
    classifier_from_options,
    classifier_options,
    verify,
    write_manifest,
)

SIZES = {"num_classes": 3, "input_size": 4, "hidden_size": 5}
MODELS = {
    "lstm": LSTMClassifier(**SIZES, proj_size=2, dtype=jnp.bfloat16),
    "gru": GRUClassifier(**SIZES, pooling="attention", bidirectional=True),
    "rnn": RNNClassifier(**SIZES, pooling="mean", nonlinearity="relu"),
}
X = np.random.default_rng(0).standard_normal((2, 6, 4)).astype(np.float32)


def save(folder, model, variables, **changes):
    config = {"format_version": FORMAT_VERSION, "model": classifier_options(model)}
    with ocp.CheckpointManager(folder) as manager:
        items = {
            PARAMS: ocp.args.StandardSave(variables["params"]),
            "config": ocp.args.JsonSave(config | changes),
        }
        manager.save(1, args=ocp.args.Composite(**items))
    write_manifest(str(folder), 1)


@pytest.mark.parametrize(
    "cell", ["gru", "rnn", pytest.param("lstm", marks=pytest.mark.slow)]
)
def test_the_classifier_that_was_saved_is_the_one_loaded(cell, tmp_path):
    model = MODELS[cell]
    variables = model.init(jax.random.key(0), X)
    save(tmp_path, model, variables)
    loaded, got = load_classifier(tmp_path)
    assert loaded == model
    jax.tree.map(np.testing.assert_array_equal, got, variables)
    np.testing.assert_array_equal(loaded.apply(got, X), model.apply(variables, X))


def test_a_jitted_function_may_load(tmp_path):
    model = MODELS["gru"]
    variables = model.init(jax.random.key(0), X)
    save(tmp_path, model, variables)

    @jax.jit
    def predict(x):
        loaded, got = load_classifier(tmp_path)
        return loaded.apply(got, x)

    np.testing.assert_allclose(predict(X), model.apply(variables, X), atol=1e-6)


def test_loading_says_nothing_beside(tmp_path, caplog):
    """Of all that Orbax has to tell of a folder that is only read."""
    model = MODELS["gru"]
    save(tmp_path, model, model.init(jax.random.key(0), X))
    with caplog.at_level("WARNING"):
        caplog.clear()
        load_classifier(tmp_path)
    assert not caplog.records


@pytest.mark.parametrize("cell", MODELS)
def test_the_record_is_json_and_names_the_cell(cell):
    record = classifier_options(MODELS[cell])
    assert record["cell"] == cell
    assert classifier_from_options(json.loads(json.dumps(record))) == MODELS[cell]


@pytest.mark.parametrize("version", [None, 1, 2, FORMAT_VERSION + 1])
def test_another_format_version_is_one_clear_error(version, tmp_path):
    model = MODELS["gru"]
    variables = model.init(jax.random.key(0), X)
    save(tmp_path, model, variables, format_version=version)
    message = rf"^path: expected a checkpoint of format version 3 in .*, got {version}$"
    with pytest.raises(ValueError, match=message):
        load_classifier(tmp_path)


WRONG_RECORDS = {
    "no_cell": ({"cell": None}, ValueError, "cell: expected one of 'lstm', 'gru', .*"),
    "other_cell": ({"cell": "peephole"}, ValueError, "cell: .*, got 'peephole'"),
    "no_string": ({"cell": ["gru"]}, ValueError, r"cell: .*, got \['gru'\]"),
    "other_option": ({"proj_size": 2}, TypeError, ".*argument 'proj_size'"),
    "wrong_value": ({"pooling": "max"}, ValueError, "pooling: .*, got 'max'"),
}


@pytest.mark.parametrize(
    ("changes", "error", "message"), WRONG_RECORDS.values(), ids=WRONG_RECORDS
)
def test_a_record_that_fits_no_classifier_is_refused(changes, error, message):
    with pytest.raises(error, match="^" + message):
        classifier_from_options(classifier_options(MODELS["gru"]) | changes)


def test_numpys_numbers_among_the_options_are_recorded_as_json():
    model = GRUClassifier(input_size=np.int64(4), num_layers=3, dropout=np.float32(0.5))
    record = json.loads(json.dumps(classifier_options(model)))
    assert (record["input_size"], record["dropout"]) == (4, 0.5)
    record = classifier_options(model.clone(dropout=Fraction(1, 4)))
    assert json.loads(json.dumps(record))["dropout"] == 0.25


def test_how_a_model_is_computed_is_not_part_of_its_record():
    """It may be read on a machine that lacks what the first one had."""
    model = LSTMClassifier(implementation="scan", remat=True, name="encoder")
    options = classifier_options(model)
    others = {"implementation": "scan", "remat": True, "name": "encoder"}
    assert not others.keys() & options.keys()
    assert classifier_from_options(options | others) == LSTMClassifier()


@pytest.fixture
def checkpoint_of_text(tmp_path):
    (tmp_path / "3").mkdir()
    (tmp_path / "3" / "params").write_text("numbers")
    return tmp_path


def test_a_manifest_is_on_the_disk_when_it_is_written(checkpoint_of_text, monkeypatch):
    synced, fsync = [], os.fsync

    def note(descriptor):
        synced.append(os.fstat(descriptor).st_ino)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    write_manifest(str(checkpoint_of_text), 3)
    assert (checkpoint_of_text / "3.sha256").stat().st_ino in synced


def test_a_manifest_is_whole_or_not_there(checkpoint_of_text, monkeypatch):
    def fail(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space"):
        write_manifest(str(checkpoint_of_text), 3)
    assert not (checkpoint_of_text / "3.sha256").exists()


def test_a_manifest_that_was_cut_short_is_damaged(checkpoint_of_text):
    write_manifest(str(checkpoint_of_text), 3)
    manifest = checkpoint_of_text / "3.sha256"
    for size in (manifest.stat().st_size - 1, 0):
        os.truncate(manifest, size)
        with pytest.raises(DamagedCheckpointError, match=r"3: 3\.sha256 is damaged$"):
            verify(str(checkpoint_of_text), 3)


def test_a_process_of_several_loads_by_itself(tmp_path, monkeypatch):
    model = MODELS["gru"]
    save(tmp_path, model, model.init(jax.random.key(0), X))
    given = []

    def note(*arguments, options):
        given.append(options.multiprocessing_options)
        raise RuntimeError

    monkeypatch.setattr(ocp, "CheckpointManager", note)
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    with pytest.raises(RuntimeError):
        load_classifier(tmp_path)
    assert given[0].primary_host == 1
    assert given[0].active_processes == {1}


def test_a_checkpoint_of_no_classifier_is_one_clear_error(tmp_path, monkeypatch):
    model = MODELS["gru"]
    save(tmp_path, model, model.init(jax.random.key(0), X))
    for recorded in ({}, {"model": "gru"}, {"model": {"cell": "peephole"}}):
        config = {"step": 1, **recorded}
        monkeypatch.setattr(checkpoint, "read_config", lambda *_, c=config: c)
        message = r"^path: expected a classifier's options in step 1 of .*, got "
        with pytest.raises(ValueError, match=message):
            load_classifier(tmp_path)


@pytest.mark.parametrize("step", [True, 5.0, "1"])
def test_a_step_is_an_integer(step, tmp_path):
    with pytest.raises(TypeError, match=r"^step: expected zero or a positive integer"):
        load_classifier(tmp_path, step)


def test_a_path_that_tensorstore_takes_for_another_is_refused(tmp_path):
    model = MODELS["gru"]
    save(tmp_path / "a" / "b", model, model.init(jax.random.key(0), X))
    other = tmp_path / "a\\b"
    other.mkdir()
    with pytest.raises(ValueError, match=r"^path: expected one without a backslash"):
        load_classifier(other)
    latin = tmp_path / "r\udcff"
    latin.mkdir()
    with pytest.raises(ValueError, match=r"^path: expected one in UTF-8, got '.*udcff"):
        load_classifier(latin)
    load_classifier(f"/{tmp_path}/a/b")  # Two slashes at the front.


def test_a_path_is_a_folder_of_checkpoints(tmp_path):
    with pytest.raises(TypeError, match=r"^path: expected a folder .*, got None"):
        load_classifier(None)
    with pytest.raises(FileNotFoundError, match=r"^path: expected a folder .*, got ''"):
        load_classifier("")
    model = MODELS["gru"]
    save(tmp_path, model, model.init(jax.random.key(0), X))
    (step,) = checkpoint.checkpoint_steps(tmp_path)
    message = rf"got none; it is itself the checkpoint of step {step} in {tmp_path}$"
    with pytest.raises(FileNotFoundError, match=message):
        load_classifier(tmp_path / str(step))


def test_an_intact_checkpoint_of_something_else_is_one_clear_error(tmp_path):
    """Its files are those that were written, but it is no classifier's."""
    model = MODELS["gru"]
    variables = model.init(jax.random.key(0), X)
    with ocp.CheckpointManager(tmp_path / "other") as manager:
        items = {"state": ocp.args.StandardSave(variables["params"])}
        manager.save(1, args=ocp.args.Composite(**items))
    write_manifest(str(tmp_path / "other"), 1)
    save(tmp_path / "misfit", model.clone(hidden_size=7), variables)
    for name in ("other", "misfit"):
        message = rf"^path: expected a classifier's checkpoint in step 1 of .*{name}, "
        with pytest.raises(ValueError, match=message) as error:
            load_classifier(tmp_path / name)
        assert str(error.value).count("\n") == 0
