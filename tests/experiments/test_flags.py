"""Flags arrive: what is trained, tested and predicted is what they ask for."""

import dataclasses
import re

import numpy as np
import pytest
from commands import rows_of, train
from PIL import Image

from experiments import restored, run
from experiments.data import choose, digits
from experiments.data.dataset import WHOLE, Share
from experiments.hyper_parameters import HyperParameters
from experiments.model_input import ModelInput
from experiments.recipes import RECIPES
from flax_lstm import GRUClassifier, load_classifier

FLAGS = (
    "--num_epochs=1",
    "--cell=gru",
    "--pooling=final",
    "--bidirectional",
    "--num_layers=1",
    "--hidden_size=9",
    "--sequence=permuted",
    "--validate",
    "--batch_size=300",
    "--seed=1",
)


@pytest.fixture(scope="module")
def unusual(tmp_path_factory):
    """Workdir of a run with nothing as it is by default, and what it printed."""
    workdir = tmp_path_factory.mktemp("unusual") / "run"
    return workdir, train(workdir, *FLAGS)


def probabilities(workdir, images):
    """Of the permuted pixels, which a model of shape (B, T, I) could not tell."""
    model, variables = load_classifier(workdir)
    ink = images / np.float32(digits.WHITE)
    logits = model.apply(variables, ModelInput(digits.WHITE, "permuted").of(ink))
    logits = np.asarray(logits, np.float64)
    return np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)


def test_the_model_and_its_examples_are_those_of_the_flags(unusual):
    workdir, _ = unusual
    model, _ = load_classifier(workdir)
    options = {"pooling": "final", "bidirectional": True, "remat": model.remat}
    assert model == GRUClassifier(10, 1, 9, 1, **options)
    (row,) = rows_of(workdir)
    # The last sixth of 1,437 is the test.
    assert (row["train_examples"], row["test_examples"]) == (1198, 239)
    assert row["step"] == 4


def test_it_is_tested_on_what_was_held_out(unusual):
    workdir, output = unusual
    held_out = digits.load().validating().test
    answers = probabilities(workdir, held_out.images).argmax(-1)
    right = (answers == held_out.labels).sum()
    accuracy = rows_of(workdir)[0]["test_accuracy"]
    assert accuracy == pytest.approx(right / 239, abs=1e-6)
    assert re.search(rf"Final test: .* \({right} of 239\)", output)


def test_predictions_read_as_the_training_did(unusual, tmp_path):
    workdir, _ = unusual
    classifier = restored.restore(str(workdir))
    data = digits.load().validating()
    for name in ("train", "test"):
        split = data.split(name)
        example = classifier.predict_example(name, 5, None, None)
        assert example.label == split.labels[5]
        np.testing.assert_array_equal(example.image, split.images[5])
        expected = probabilities(workdir, split.images[5:6])[0]
        np.testing.assert_allclose(example.probabilities, expected, atol=1e-5)
    of_all = classifier.answer_all(data).probabilities
    expected = probabilities(workdir, data.test.images)
    np.testing.assert_allclose(of_all, expected, atol=1e-5)
    # An image that is one of the training's own, but for what reading makes of it.
    ink = data.train.images[5].astype(np.uint8) * 15
    Image.fromarray(ink).resize((80, 80)).save(tmp_path / "digit.png")
    of_image = classifier.predict_image(str(tmp_path / "digit.png"))
    expected = probabilities(workdir, of_image.image[None])[0]
    np.testing.assert_allclose(of_image.probabilities, expected, atol=1e-5)


def test_the_parts_of_several_processes_are_what_was_held_out():
    whole = digits.load().validating()
    shares = [Share(index, 3) for index in range(3)]
    parts = [choose.load("digits", None, None, s, validate=True) for s in shares]
    for name in ("train", "test"):
        totals = {part.split(name).total for part in parts}
        assert totals == {len(whole.split(name))}
        for array in ("images", "labels"):
            joined = [getattr(part.split(name), array) for part in parts]
            expected = getattr(whole.split(name), array)
            np.testing.assert_array_equal(np.concatenate(joined), expected)


def test_seeds_draw_other_parameters_and_orders(monkeypatch, tmp_path):
    states = [started(monkeypatch, tmp_path, seed=seed).state for seed in (0, 1)]
    one, two = (state.params["head"]["kernel"] for state in states)
    assert (one != two).any()
    assert states[0].shuffle_key != states[1].shuffle_key


def test_a_recipe_is_what_is_trained_by(monkeypatch, tmp_path):
    best = RECIPES["best"]
    at = started(monkeypatch, tmp_path, recipe="best")
    assert at.epochs.warp == best.warp
    assert at.average_decay == best.average_decay
    assert at.state.mean_params is not None
    assert at.clip_norm == best.clip_norm
    # Two epochs of 15 steps, the last of which has next to nothing left.
    sizes = [float(at.step_size(step)) for step in (9, 30)]
    assert sizes == pytest.approx([best.learning_rate, 0], rel=1e-3, abs=1e-6)


def test_a_schedule_counts_the_examples_of_all_processes(monkeypatch, tmp_path):
    at = started(monkeypatch, tmp_path, recipe="best", share=Share(0, 2))
    assert len(at.epochs.split.labels) == 719
    # One cycle of two epochs, 15 steps each, is highest after three tenths.
    assert max(range(31), key=at.step_size) == 9


OTHERS = {
    "recipe": "fast",
    "sequence": "pixels",
    "cell": "gru",
    "pooling": "mean",
    "hidden_size": 7,
    "num_layers": 3,
    "bidirectional": True,
    "dropout": 0.5,
    "batch_size": 7,
    "learning_rate": 0.5,
    "num_epochs": 3,
    "seed": 5,
    "validate": True,
}


def test_runs_that_differ_in_any_flag_have_different_workdirs():
    assert set(OTHERS) == {field.name for field in dataclasses.fields(HyperParameters)}
    runs = [HyperParameters(**{name: value}) for name, value in OTHERS.items()]
    names = {run.workdir_name("mnist") for run in (HyperParameters(), *runs)}
    assert len(names) == 1 + len(OTHERS)


class Started:
    """What a run of two epochs has made when its first one begins."""


class _Enough(Exception):
    pass


def started(monkeypatch, workdir, recipe="notes", seed=0, share=WHOLE):
    found = Started()

    def note_optimizer(step_size, clip_norm=None):
        found.step_size, found.clip_norm = step_size, clip_norm
        return make_optimizer(step_size, clip_norm)

    def note_state(*arguments):
        found.average_decay = arguments[4]
        return make_state(*arguments)

    def stop(state, epochs, *others):
        found.state, found.epochs = state, epochs
        raise _Enough

    make_optimizer, make_state = run.optimizer, run.create_state
    with monkeypatch.context() as patch:
        patch.setattr(run, "optimizer", note_optimizer)
        patch.setattr(run, "create_state", note_state)
        patch.setattr(run, "_run_epoch", stop)
        patch.setattr(run, "Share", lambda index, count: share)
        of_recipe = dict.fromkeys(("batch_size", "learning_rate", "dropout"))
        parameters = HyperParameters.of_recipe(recipe, 2, seed=seed, **of_recipe)
        with pytest.raises(_Enough):
            run.train_and_test(
                parameters,
                num_epochs=2,
                dataset="digits",
                data_dir=None,
                manual_dir=None,
                workdir=str(workdir / f"{recipe}{seed}"),
                num_devices=1,
            )
    return found
