"""Any picture of one digit, brought to the form of a dataset."""

import dataclasses
import math
import warnings

import numpy as np
from PIL import Image, ImageOps

from experiments.data import digits, mnist
from experiments.errors import RunError

_MAX_PIXELS = 64_000_000
_INK = 0.1  # A pixel counts as ink from this share of the strongest contrast on.
_LEAST_CONTRAST = 16  # Of 255; less than that is paper and noise.


@dataclasses.dataclass(frozen=True)
class Form:
    """How a dataset's images were made.

    The digit's bounding box is scaled to fit `box` x `box` pixels, and placed in
    `side` x `side` pixels so that its centre of mass (`by_mass`) or else the box
    itself is centred. `white` is the value of full ink.
    """

    side: int
    box: int
    by_mass: bool
    white: int


FORMS = {
    # http://yann.lecun.com/exdb/mnist/: 20x20 box, centre of mass, 28x28.
    mnist.NAME: Form(side=28, box=20, by_mass=True, white=mnist.WHITE),
    # Alpaydin & Kaynak 1998: the digit fills the image, each pixel counts 4x4 dots.
    digits.NAME: Form(side=8, box=8, by_mass=False, white=digits.WHITE),
}


def read_digit(path: str, form: Form) -> np.ndarray:
    """The digit in the PNG or JPEG at `path` as (side, side) uint8, white on black.

    Transparent parts count as white paper. Whether the digit is dark on light or
    light on dark is read off the picture's rim.

    Raises:
        RunError: no such file, no PNG or JPEG, too large, or nothing drawn on it.
    """
    return to_form(_read_grey(path), form, path)


def to_form(grey: np.ndarray, form: Form, name: str) -> np.ndarray:
    """`grey`, (rows, columns) uint8, as (side, side) uint8; see `read_digit`."""
    ink = _ink(grey)
    if ink is None:
        raise RunError(f"--image: expected a digit in {name}, got an even surface")
    rows, columns = (np.flatnonzero((ink > _INK).any(axis=axis)) for axis in (1, 0))
    ink = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    digit = _scaled(ink, form.box)
    top, left = _place(digit, form)
    canvas = np.zeros((form.side, form.side))
    canvas[top : top + digit.shape[0], left : left + digit.shape[1]] = digit
    return np.rint(canvas * form.white).astype(np.uint8)


def _read_grey(path: str) -> np.ndarray:
    try:
        with warnings.catch_warnings():
            # Pillow warns of sizes that are refused below, before any decoding.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(path, formats=("PNG", "JPEG"))
        with image:
            if image.width * image.height > _MAX_PIXELS:
                raise RunError(
                    f"--image: expected at most {_MAX_PIXELS:,} pixels, got "
                    f"{image.width} x {image.height} in {path}"
                )
            upright = ImageOps.exif_transpose(image)
            if upright.has_transparency_data:
                upright = upright.convert("RGBA")
                paper = Image.new("RGBA", upright.size, "white")
                upright = Image.alpha_composite(paper, upright)
            if upright.mode.startswith("I;16"):
                # Pillow cuts 16-bit grey off at 255 instead of scaling it.
                return (np.asarray(upright) >> 8).astype(np.uint8)
            return np.asarray(upright.convert("L"))
    except RunError:
        raise
    except FileNotFoundError as error:
        raise RunError(f"--image: no such file: {path}") from error
    except Exception as error:  # Pillow's decoders raise many kinds for damage.
        raise RunError(
            f"--image: expected a PNG or JPEG, got {path} ({error})"
        ) from error


def _ink(grey: np.ndarray) -> np.ndarray | None:
    """Contrast against the paper in [0, 1], or None if there is none to speak of."""
    rim = np.concatenate([grey[0], grey[-1], grey[:, 0], grey[:, -1]])
    paper = float(np.median(rim))
    contrast = grey.astype(float) - paper
    if paper > 127:
        contrast = -contrast
    strongest = contrast.max()
    if strongest < _LEAST_CONTRAST:
        return None
    return np.clip(contrast / strongest, 0, 1)


def _scaled(ink: np.ndarray, box: int) -> np.ndarray:
    scale = box / max(ink.shape)
    height, width = (max(1, min(box, round(side * scale))) for side in ink.shape)
    image = Image.fromarray((ink * 255).astype(np.uint8))
    smooth = Image.Resampling.BOX if scale < 1 else Image.Resampling.BILINEAR
    resized = image.resize((width, height), smooth)
    return np.asarray(resized) / 255


def _place(digit: np.ndarray, form: Form) -> tuple[int, int]:
    """Row and column of the digit's corner on the canvas."""
    corner = []
    for axis, size in enumerate(digit.shape):
        center, target = (size - 1) / 2, (form.side - 1) / 2
        if form.by_mass:
            mass = digit.sum(axis=1 - axis)
            center = float(mass @ np.arange(size) / mass.sum())
            target = form.side / 2  # MNIST's centres of mass lie at pixel 14, not 13.5.
        start = math.floor(target - center + 0.5)
        corner.append(min(max(start, 0), form.side - size))
    return corner[0], corner[1]
