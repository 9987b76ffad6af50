"""Telling ink from paper."""

import numpy as np
import pytest
from PIL import Image, ImageDraw

from experiments.ink import find_ink, otsu, pen_width, thickened

ROWS, COLUMNS = np.mgrid[0:240, 0:320]
LIGHTS = {
    "even": np.ones((240, 320)),
    "falls off": 0.4 + 0.6 * COLUMNS / 320,
    "lamp in the middle": 1 - 0.5 * np.hypot(ROWS - 120, COLUMNS - 160) / 200,
    "soft shadow below": 1 - 0.5 / (1 + np.exp((100 - ROWS) / 5)),
    "hard shadow on the left": np.where(COLUMNS < 150, 0.5, 1.0),
    "hard slanted shadow": np.where(COLUMNS + ROWS < 260, 0.6, 1.0),
}


def ring(width=14, box=(110, 60, 210, 180)):
    """A zero, 1 where there is ink, (240, 320)."""
    image = Image.new("L", (320, 240))
    ImageDraw.Draw(image).ellipse(box, outline=255, width=width)
    return np.asarray(image) / 255


@pytest.mark.parametrize("light", LIGHTS.values(), ids=LIGHTS)
@pytest.mark.parametrize("ink_grey", [40, 110], ids=["pen", "pencil"])
def test_a_shadow_is_no_ink(light, ink_grey):
    drawn = ring()
    grey = (210 + (ink_grey - 210) * drawn) * light
    noisy = grey + np.random.default_rng(0).normal(0, 3, grey.shape)
    ink = find_ink(np.clip(noisy, 0, 255).astype(np.uint8))
    wrong = (ink > 0.5) != (drawn > 0.5)
    # Edges may move by a pixel: the ring's two are 630 pixels long.
    assert wrong.sum() < 630
    rows, columns = np.nonzero(ink)
    assert 57 <= rows.min() <= rows.max() <= 183
    assert 107 <= columns.min() <= columns.max() <= 213


def test_where_ink_is_light_a_shadow_in_the_middle_is_none_either():
    """Both are farther from the rim's greys than paper is."""
    drawn = ring()
    distance = np.hypot(ROWS - 120, COLUMNS - 160)
    light = 1 - 0.6 * np.exp(-((distance / 60) ** 2) / 2)
    ink = find_ink(((60 + 140 * drawn) * light).astype(np.uint8))
    # As above: edges may move by a pixel.
    assert ((ink > 0.5) != (drawn > 0.5)).sum() < 630


@pytest.mark.parametrize(("paper", "ink"), [(255, 0), (0, 255), (90, 20), (20, 90)])
def test_ink_may_be_darker_or_lighter_than_its_paper(paper, ink):
    drawn = ring()
    grey = np.rint(paper + (ink - paper) * drawn).astype(np.uint8)
    assert abs(find_ink(grey) - drawn).mean() < 0.02  # Smoothed edges.


def test_dirt_is_no_ink():
    grey = np.rint(255 * (1 - ring())).astype(np.uint8)
    grey[20:23, 30:33] = 0
    assert not find_ink(grey)[:40, :50].any()


def test_noise_alone_is_no_ink():
    noise = np.random.default_rng(0).normal(200, 1, (240, 320))
    assert find_ink(noise.astype(np.uint8)) is None


@pytest.mark.parametrize("width", [1, 3, 8, 20])
def test_width_of_a_pen(width):
    ink = np.zeros((60, 100))
    ink[30 : 30 + width, 10:90] = 1
    assert abs(pen_width(ink) - width) <= 1  # An even width has no middle pixel.


def test_thickened_on_either_side():
    ink = np.zeros((9, 40))
    ink[4] = 1
    thick = thickened(ink, 2)
    assert (thick.max(axis=1) > 0.5).sum() == 5


@pytest.mark.parametrize("margin", [0.5, 1.5, 2])
def test_thickened_beyond_the_old_sheet(margin):
    thick = thickened(np.ones((3, 3)), margin)
    for across in (thick[len(thick) // 2], thick[:, len(thick) // 2]):
        assert across.sum() == 3 + 2 * margin


def test_otsu_finds_the_gap():
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.normal(10, 2, 900), rng.normal(100, 5, 60)])
    assert 20 < otsu(values) < 80
