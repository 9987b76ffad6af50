"""The pictures of a run and of a reading."""

import dataclasses
import json
import os

import jax
import numpy as np
import pytest
from commands import assert_one_line_error, command, command_anew
from matplotlib.colors import same_color
from PIL import Image

from experiments import answers as answers_module, metrics
from experiments.answers import Answers, answer_all
from experiments.data import digits
from experiments.errors import RunError
from experiments.model_input import ModelInput
from experiments.pictures import confusion, curves, gates, mistakes
from experiments.pictures.confusion import counts_of, save_confusion
from experiments.pictures.curves import save_curves
from experiments.pictures.gates import save_gates
from experiments.pictures.mistakes import save_mistakes
from experiments.pictures.of_run import draw_run
from experiments.pictures.png import save_png
from experiments.prediction import Prediction
from experiments.reading import LayerTrace, Reading
from experiments.restored import restore
from flax_lstm import RNNClassifier

RUN_PICTURES = ("curves", "confusion", "mistakes")


def size_of(path):
    with Image.open(path) as picture:
        picture.load()
        return picture.size


def test_every_run_leaves_its_pictures(trained):
    workdir, output = trained
    for name in RUN_PICTURES:
        assert f"Picture: {workdir}/{name}.png" in output
        assert min(size_of(workdir / f"{name}.png")) > 300


@pytest.mark.slow
def test_pictures_follow_a_run_that_goes_on(tmp_path):
    done = command(
        "mnist", "--dataset=digits", "--num_epochs=1", f"--workdir={tmp_path}"
    )
    assert done.returncode == 0, done.stderr
    before = {name: (tmp_path / f"{name}.png").read_bytes() for name in RUN_PICTURES}
    done = command(
        "mnist", "--dataset=digits", "--num_epochs=2", f"--workdir={tmp_path}"
    )
    assert done.returncode == 0, done.stderr
    for name in RUN_PICTURES:
        assert (tmp_path / f"{name}.png").read_bytes() != before[name], name
    assert not list(tmp_path.glob("*.tmp"))


def test_gates_of_a_digit_as_a_picture(trained, tmp_path):
    workdir, _ = trained
    path = tmp_path / "gates.png"
    flags = f"--workdir={workdir}", "--index=2", f"--output={path}"
    done = command_anew("gates", *flags)
    assert done.returncode == 0, done.stderr
    assert f"Label: {digits.load().test.labels[2]}\nPrediction: " in done.stdout
    assert min(size_of(path)) > 600


def test_a_backend_that_is_not_installed_is_not_needed(trained, tmp_path):
    """As Jupyter names one to the commands of its cells."""
    path = tmp_path / "gates.png"
    flags = f"--workdir={trained[0]}", "--index=2", f"--output={path}"
    backend = {"MPLBACKEND": "no_such_backend"}
    done = command_anew("gates", *flags, env=os.environ | backend)
    assert done.returncode == 0, done.stderr
    assert path.is_file()


def test_answers_to_a_split_are_the_tested_ones(trained):
    workdir, _ = trained
    classifier = restore(str(workdir))
    test = digits.load().test
    answers = answer_all(
        classifier.model, classifier.variables, test, ModelInput(digits.WHITE)
    )
    row = json.loads((workdir / "metrics.jsonl").read_text().splitlines()[-1])
    assert (answers.answers == test.labels).mean() == row["test_accuracy"]
    # Two orders of summing 360 float32 numbers.
    assert answers.losses.mean() == pytest.approx(row["test_loss"], rel=1e-5)


def three_answers(labels, probabilities):
    probabilities = np.array(probabilities)
    labels = np.array(labels)
    losses = -np.log(probabilities[np.arange(len(labels)), labels])
    return Answers(labels, probabilities.argmax(1), probabilities, losses)


def test_mistakes_come_with_the_worst_first():
    answers = three_answers(
        [0, 1, 1, 0], [[0.4, 0.6], [0.1, 0.9], [1, 1e-9], [0.5, 0.4]]
    )
    assert answers.mistakes().tolist() == [2, 0]
    assert answers.hardest().tolist() == [2, 0, 3, 1]


def test_confusion_counts_labels_in_rows():
    answers = three_answers([0, 1, 1], [[0.9, 0.1], [0.8, 0.2], [0.7, 0.3]])
    assert counts_of(answers, 2).tolist() == [[1, 0], [2, 0]]


def test_answers_are_to_every_example(monkeypatch):
    test = digits.load().test
    model = RNNClassifier(input_size=8, hidden_size=4, num_layers=1)
    variables = jax.jit(model.init)(jax.random.key(0), np.ones((1, 8, 8), np.float32))
    whole = answer_all(model, variables, test, ModelInput(digits.WHITE))
    monkeypatch.setattr(answers_module, "_BATCH_SIZE", 100)  # Of 360.
    in_batches = answer_all(model, variables, test, ModelInput(digits.WHITE))
    np.testing.assert_allclose(in_batches.losses, whole.losses, rtol=1e-5)


def test_a_run_without_metrics_has_no_curves(trained, tmp_path):
    classifier = dataclasses.replace(restore(str(trained[0])), workdir=str(tmp_path))
    data = digits.load()
    drawn = draw_run(classifier, data, classifier.answer_all(data))
    assert drawn == [f"{tmp_path}/{name}.png" for name in ("confusion", "mistakes")]
    assert {path.name for path in tmp_path.iterdir()} == {
        "confusion.png",
        "mistakes.png",
    }


def test_a_run_without_errors_has_pictures_too(tmp_path):
    answers = three_answers([0, 1], [[1, 0], [0, 1]])
    data = digits.load()
    save_confusion(answers, str(tmp_path / "confusion.png"))
    save_mistakes(answers, data, str(tmp_path / "mistakes.png"))
    row = {"epoch": 1, "train_examples": 2, "test_examples": 2}
    for split in ("train", "test"):
        row |= {f"{split}_loss": 1e-7, f"{split}_accuracy": 1.0}
    save_curves([row], str(tmp_path / "curves.png"))
    assert all(size_of(tmp_path / f"{name}.png") for name in RUN_PICTURES)


def test_runs_of_different_length_side_by_side(trained, tmp_path):
    workdir, _ = trained
    short = tmp_path / "short"
    short.mkdir()
    first, *_ = (workdir / "metrics.jsonl").read_text().splitlines()
    (short / "metrics.jsonl").write_text(first + "\n")
    path = tmp_path / "comparison.png"
    flags = f"--workdirs={workdir},{short}", f"--output={path}"
    done = command_anew("compare", *flags)
    assert done.returncode == 0, done.stderr
    assert "Note:" not in done.stdout
    assert min(size_of(path)) > 300
    row = json.loads(first) | {"validate": True}
    (short / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    done = command("compare", *flags, r"--names=$\foo$,b")  # No formula.
    assert done.returncode == 0, done.stderr
    note = "tested on different examples ($\\foo$: digits, b: digits, held out of the"
    assert note in done.stdout
    for names in ("one", "one,two,two", "one,one", ",two"):
        done = command("compare", *flags, f"--names={names}")
        assert_one_line_error(done, "--names: expected 2 different ones")
    for folders, got in (("", "none"), (f"{workdir},", f"{workdir},")):
        done = command("compare", f"--workdirs={folders}")
        message = f"--workdirs: expected folders with commas between them, got {got}"
        assert_one_line_error(done, message)
    done = command("compare", flags[0], f"--output={path}/comparison.png")
    assert_one_line_error(done, "--output: can't write")
    elsewhere = tmp_path / "made" / "here" / "comparison.png"
    assert command("compare", flags[0], f"--output={elsewhere}").returncode == 0
    assert elsewhere.exists()
    done = command("compare", f"--workdirs={workdir},{tmp_path}")
    assert_one_line_error(done, f"of at least one epoch, got {tmp_path}")


@pytest.mark.parametrize("line", [b"\xff\xfe", b'{"epoch": 1}', b"[1]", b"{"])
def test_what_is_no_row_of_metrics_is_none(line, tmp_path):
    (tmp_path / metrics.FILE_NAME).write_bytes(line + b"\n")
    assert metrics.rows(str(tmp_path)) == []


ROW = {"epoch": 1}
for split in ("train", "test"):
    ROW |= {f"{split}_loss": 0.5, f"{split}_accuracy": 0.5, f"{split}_examples": 2}


@pytest.fixture
def drawn(monkeypatch):
    """The figures that would be saved."""
    figures = []
    for module in (confusion, curves, gates, mistakes):
        monkeypatch.setattr(
            module, "save_png", lambda figure, path: figures.append(figure)
        )
    return figures


def test_all_right_and_all_wrong_are_drawn_half_an_example_short_of_it(drawn):
    row = ROW | {"train_accuracy": 1.0, "test_accuracy": 0.0}
    save_curves([row], "")
    _, accuracy = drawn[0].axes
    assert [line.get_ydata().tolist() for line in accuracy.lines] == [[0.75], [0.25]]


def test_numbers_of_runs_of_different_length_say_after_which_epoch(drawn):
    curves.save_comparison({"a": [ROW], "b": [ROW, ROW | {"epoch": 2}]}, "")
    texts = [text.get_text() for text in drawn[0].axes[0].get_legend().get_texts()]
    assert texts == ["a  0.5000 after 1", "b  0.5000 after 2"]


def test_a_count_stands_in_the_row_of_its_label_and_the_column_of_its_answer(drawn):
    save_confusion(three_answers([0, 1, 1], [[0.9, 0.1], [0.8, 0.2], [0.7, 0.3]]), "")
    (axes,) = drawn[0].axes
    places = {text.get_position(): text.get_text() for text in axes.texts}
    assert places == {(0, 0): "1", (0, 1): "2"}
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("answer", "label")


def test_of_a_mistakes_bars_the_answers_is_orange_and_the_labels_blue(drawn):
    save_mistakes(three_answers([1], [[0.2, 0.1, 0.7]]), digits.load(), "")
    _, bars = drawn[0].axes
    colors = [bar.get_facecolor() for bar in bars.patches]
    assert all(map(same_color, colors, ("lightgray", "tab:blue", "tab:orange")))


def test_a_name_that_matplotlib_would_leave_out_is_in_the_legend(drawn):
    curves.save_comparison({"_old": [ROW], "new": [ROW]}, "")
    for axes in drawn[0].axes:
        old, new = (text.get_text() for text in axes.get_legend().get_texts())
        assert (old[:5], new[:4]) == ("_old ", "new ")


@pytest.mark.parametrize("name", ["{}", "a folder of a run, number {}"])
def test_many_runs_stay_apart(drawn, name):
    names = [name.format(number) for number in range(30)]
    curves.save_comparison({name: [ROW] for name in names}, "")
    (figure,) = drawn
    (legend,) = figure.legends
    labels = [text.get_text() for text in legend.get_texts()]
    assert labels == [f"{name}  0.5000, 50.00%" for name in names]
    colors = [tuple(line.get_color()) for line in legend.get_lines()]
    assert len(set(colors)) == 30
    for axes in figure.axes:
        assert axes.get_legend() is None
        assert [tuple(line.get_color()) for line in axes.lines] == colors


# Of three units, which are largest in the last row, the first, and the second.
C = np.array([[0.1, -3.0, 0.0], [0.0, 1.0, 0.2], [-0.5, 0.0, 0.1]])


def test_units_are_sorted_by_the_row_of_their_peak():
    assert LayerTrace("layer_0", C, C, C, C).units_by_peak().tolist() == [1, 2, 0]


def test_gates_and_cell_states_are_drawn_in_that_order(drawn):
    of_gates = C + 1, C + 2, C + 3
    reading = Reading((LayerTrace("layer_0", *of_gates, C),), np.eye(3))
    shown = Prediction(np.zeros((3, 3)), 16, np.ones(3), np.ones(3) / 3, None)
    save_gates(reading, shown, "")
    panels = [a for a in drawn[0].axes if a.get_title().startswith("layer_0: ")]
    for axes, values in zip(panels, (*of_gates, C), strict=True):
        (image,) = axes.images
        np.testing.assert_array_equal(image.get_array(), values[:, [1, 2, 0]])


def test_a_picture_that_cannot_be_written_leaves_the_old_one(tmp_path):
    class Broken:
        def savefig(self, path, **options):
            with open(path, "wb") as file:
                file.write(b"half")
            raise OSError(28, "No space left on device")

    path = tmp_path / "curves.png"
    path.write_bytes(b"old")
    with pytest.raises(RunError, match=r"can't write .*curves.png: No space"):
        save_png(Broken(), str(path))
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["curves.png"]
