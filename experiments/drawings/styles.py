"""Putting strokes on paper: pens, places, light."""

import dataclasses

import numpy as np
from PIL import Image, ImageDraw
from scipy.ndimage import gaussian_filter

from experiments.drawings.shapes import SHAPES, Stroke

_FINER = 4  # Drawn larger by this factor, then averaged: smooth edges.


@dataclasses.dataclass(frozen=True)
class Style:
    """A sheet and a pen; lengths are shares of the sheet's shorter side.

    `size` (rows, columns) in pixels; `height` of the digit and `width` of the pen as
    shares of the sheet and of the digit; `aside` how far the digit's middle may lie
    from the sheet's; `paper` and `ink` grey levels; `photo` adds light that falls
    off, a shadow, blur and noise.
    """

    size: tuple[int, int] = (280, 280)
    height: float = 0.6
    width: float = 0.1
    aside: float = 0.0
    paper: int = 255
    ink: int = 0
    photo: bool = False


STYLES = {
    "dark on light": Style(),
    "light on dark": Style(paper=20, ink=235),
    "thin": Style(width=0.03),
    "thick": Style(width=0.2),
    "off-centre": Style(size=(360, 480), height=0.35, aside=0.28),
    "photo with shadow": Style(
        size=(480, 640),
        height=0.5,
        width=0.07,
        aside=0.1,
        paper=225,
        ink=60,
        photo=True,
    ),
}


@dataclasses.dataclass(frozen=True)
class Drawing:
    """`grey` (rows, columns) uint8 of the digit `label`; the rest says how."""

    label: int
    shape: str
    style: str
    grey: np.ndarray


def draw_all(hands: int = 2) -> list[Drawing]:
    """Every shape in every style by each of the hands; the same ones at every call.

    A hand has its own slant, proportions, size and unsteadiness, and draws no shape
    twice alike.
    """
    drawings = []
    for digit, shapes in SHAPES.items():
        for shape_number, (shape, strokes) in enumerate(shapes.items()):
            for hand in range(hands):
                rng = np.random.default_rng((hand, digit, shape_number))
                paths = _by_hand(strokes, rng)
                drawings += [
                    Drawing(digit, shape, name, draw(paths, style, rng))
                    for name, style in STYLES.items()
                ]
    return drawings


def draw(paths: list[np.ndarray], style: Style, rng: np.random.Generator) -> np.ndarray:
    """`paths`, (M, 2) each in units of the digit's height, as (rows, columns) uint8."""
    ink = _inked(paths, style, rng)
    grey = style.paper + (style.ink - style.paper) * ink
    return _photographed(grey, rng) if style.photo else np.rint(grey).astype(np.uint8)


def _by_hand(strokes: list[Stroke], rng: np.random.Generator) -> list[np.ndarray]:
    """The strokes' paths, unsteady, slanted, turned and stretched."""
    slant, turn = rng.uniform(-0.15, 0.35), np.radians(rng.uniform(-8, 8))
    stretch = rng.uniform(0.8, 1.25)
    cos, sin = np.cos(turn), np.sin(turn)
    turned = np.array([[cos, -sin], [sin, cos]]) @ [[stretch, -slant], [0, 1]]
    unsteady = (
        Stroke(stroke.points + rng.normal(0, 0.02, stroke.points.shape), stroke.smooth)
        for stroke in strokes
    )
    return [stroke.path() @ turned.T for stroke in unsteady]


def _inked(paths, style, rng) -> np.ndarray:
    """Share of each pixel that is ink, (rows, columns) in [0, 1]."""
    rows, columns = style.size
    side = min(style.size)
    height = style.height * side * rng.uniform(0.9, 1.1)
    points = np.concatenate(paths)
    middle = (points.min(axis=0) + points.max(axis=0)) / 2
    aside = rng.uniform(-style.aside, style.aside, 2) * side
    at = np.array([columns / 2, rows / 2]) + aside
    image = Image.new("L", (columns * _FINER, rows * _FINER))
    pen = ImageDraw.Draw(image)
    width = style.width * height * _FINER
    for path in paths:
        corners = (((path - middle) * height + at) * _FINER).tolist()
        flat = [tuple(corner) for corner in corners]
        pen.line(flat, fill=255, width=round(width), joint="curve")
        for x, y in flat:
            pen.ellipse(
                (x - width / 2, y - width / 2, x + width / 2, y + width / 2), fill=255
            )
    return np.asarray(image.reduce(_FINER)) / 255


def _photographed(grey: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """`grey` under a lamp at one side, with the shadow of a hand, blurred and noisy."""
    rows, columns = grey.shape
    y, x = np.mgrid[0:rows, 0:columns]
    angle = rng.uniform(0, 2 * np.pi)
    along = (x / columns - 0.5) * np.cos(angle) + (y / rows - 0.5) * np.sin(angle)
    lamp = 1 - rng.uniform(0.3, 0.6) * (along + 0.5)
    angle = rng.uniform(0, 2 * np.pi)
    across = (x / columns - 0.5) * np.cos(angle) + (y / rows - 0.5) * np.sin(angle)
    edge = rng.uniform(-0.25, 0.25)
    softness = rng.uniform(0.01, 0.06)
    shadow = 1 / (1 + np.exp(-np.clip((across - edge) / softness, -50, 50)))
    light = lamp * (1 - rng.uniform(0.25, 0.5) * shadow)
    blurred = gaussian_filter(grey * light, 1.2)
    noisy = blurred + rng.normal(0, 4, grey.shape)
    return np.rint(np.clip(noisy, 0, 255)).astype(np.uint8)
