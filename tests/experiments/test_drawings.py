"""Made-up drawings of digits, and what the preprocessing makes of them."""

import os
import re

import numpy as np
import pytest

from experiments.drawings import score as score_module
from experiments.drawings.score import Scored, score
from experiments.drawings.shapes import SHAPES
from experiments.drawings.styles import STYLES, draw_all
from experiments.images import FORMS, to_form
from experiments.restored import restore

PLAIN = "dark on light"
HANDS = 1


@pytest.fixture(scope="module")
def drawings():
    return draw_all(HANDS)


def test_every_digit_is_drawn_in_every_style_the_same_at_every_call(drawings):
    assert len(drawings) == 180
    count = HANDS * 3  # Shapes of each digit.
    for style in STYLES:
        labels = [d.label for d in drawings if d.style == style]
        assert np.bincount(labels).tolist() == [count] * 10
    for drawing, again in zip(drawings, draw_all(HANDS), strict=True):
        np.testing.assert_array_equal(drawing.grey, again.grey)


# A tenth of a second each: of every digit its first shape, or all three.
@pytest.fixture(scope="module", params=[1, pytest.param(3, marks=pytest.mark.slow)])
def forms(drawings, request):
    """By style, (drawings, side, side) in MNIST's form."""
    form = FORMS["mnist"]
    taken = [d for d in drawings if d.shape in [*SHAPES[d.label]][: request.param]]
    assert len(taken) == len(STYLES) * 10 * request.param
    return {
        style: np.stack(
            [to_form(d.grey, form, d.shape) for d in taken if d.style == style]
        ).astype(float)
        for style in STYLES
    }


@pytest.mark.parametrize("style", [style for style in STYLES if style != PLAIN])
def test_the_same_digit_looks_alike_in_all_styles(forms, style):
    plain, other = forms[PLAIN], forms[style]
    lengths = np.sqrt((plain**2).sum((1, 2)) * (other**2).sum((1, 2)))
    likeness = (plain * other).sum((1, 2)) / lengths  # Cosines: 1 is equal.
    # A centre of mass that is rounded to the next pixel costs up to 0.3, a pen of
    # twice the width 0.15; of two different digits it is 0.3 to 0.6.
    assert np.median(likeness) > (0.85 if style == "thick" else 0.97)
    assert likeness.min() > 0.6


@pytest.mark.slow
def test_drawings_are_scored_by_style_and_digit(trained):
    workdir, _ = trained
    scored = score(restore(str(workdir)), HANDS)
    assert len(scored.answers) == 30 * len(STYLES)
    right = int(scored.right.sum())
    # Trained on scanned 8x8 digits, it knows the look of these; chance is 18.
    assert right > 90
    lines = scored.text().splitlines()
    assert lines[-1].startswith(f"All: {right} of 180 (")
    assert lines[0].startswith("  style dark on light: ")
    assert sum(line.startswith("  wrong: ") for line in lines) == 180 - right


def test_scores_are_in_the_order_of_the_styles(drawings):
    labels = np.array([drawing.label for drawing in drawings])
    lines = Scored(drawings, np.zeros((len(drawings), 8, 8)), labels).text()
    assert re.findall(r"style (.+):", lines) == list(STYLES)


def test_scores_of_a_digit_are_of_those_drawn_as_it(drawings):
    zeros = np.zeros(len(drawings), int)
    lines = Scored(drawings, np.zeros((len(drawings), 8, 8)), zeros).text()
    assert "digit 0: 18 of 18 (100.0%)" in lines
    assert "digit 9: 0 of 18 (0.0%)" in lines


def test_of_many_mistakes_the_first_are_drawn(drawings, monkeypatch):
    figures = []
    monkeypatch.setattr(
        score_module, "save_png", lambda figure, _: figures.append(figure)
    )
    labels = np.array([drawing.label for drawing in drawings])
    forms = np.broadcast_to(np.arange(180)[:, None, None], (180, 8, 8))
    for wrong in (180, 5):
        answers = (labels + (np.arange(180) >= 180 - wrong)) % 10
        Scored(drawings, forms, answers).save_mistakes("")
    many, few = figures
    assert many.get_suptitle() == "The first 60 of 180 errors"
    assert [sum(bool(axes.images) for axes in f.axes) for f in (many, few)] == [120, 10]
    seen = [image.get_array() for axes in few.axes for image in axes.images]
    assert [array.max() for array in seen[5:]] == [175, 176, 177, 178, 179]


@pytest.mark.slow
def test_a_model_of_mnist_reads_at_least_95_percent():
    workdir = os.environ.get("MNIST_WORKDIR")
    if not workdir:
        pytest.skip("needs a trained model: MNIST_WORKDIR=folder of a run on MNIST")
    scored = score(restore(workdir), hands=2)
    assert scored.right.mean() >= 0.95, scored.text()
