"""Any picture of one digit, brought to the form of a dataset."""

import dataclasses
import math
import warnings
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from experiments.data import digits, mnist
from experiments.errors import RunError
from experiments.ink import LEAST_CONTRAST, find_ink, pen_width, thickened

_MAX_PIXELS = 64_000_000
_LARGE_SIDE = 1024  # Larger pictures are reduced: more says nothing about a digit.
_MEASURABLE = 2  # In a picture of fewer boxes a pen is too narrow to measure.


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
    pen: float
    white: int


FORMS = {
    # http://yann.lecun.com/exdb/mnist/: 20x20 box, centre of mass, 28x28.
    mnist.NAME: Form(side=mnist.SIDE, box=20, by_mass=True, pen=1.9, white=mnist.WHITE),
    # Alpaydin & Kaynak 1998: the digit fills the image, each pixel counts 4x4 dots.
    digits.NAME: Form(
        side=digits.SIDE, box=8, by_mass=False, pen=1.0, white=digits.WHITE
    ),
}


class ImageError(ValueError):
    """A picture that can't be read as one digit; its message says why."""


def read_digit(path: str, form: Form) -> np.ndarray:
    """The digit in the PNG or JPEG at `path` as (side, side) uint8, white on black.

    Transparent parts count as white paper, or black under white ink. Whether the digit
    is dark on light or light on dark is read off the picture's rim; shadows are
    removed, strokes thinner than `form.pen` thickened.

    Raises:
        RunError: no such file, no PNG or JPEG, too large, or nothing drawn on it.
    """
    try:
        with open(path, "rb") as file:
            return decode_digit(file, form, path)
    except FileNotFoundError as error:
        raise RunError(f"--image: no such file: {path}") from error
    except OSError as error:
        raise RunError(f"--image: can't read {path}: {error}") from error
    except ImageError as error:
        raise RunError(f"--image: {error}") from error


def decode_digit(file: BinaryIO, form: Form, name: str) -> np.ndarray:
    """`read_digit` of an open file, called `name` in errors.

    Raises:
        ImageError: no PNG or JPEG, too large, or nothing drawn on it.
    """
    return to_form(_read_grey(file, name), form, name)


def to_form(grey: np.ndarray, form: Form, name: str) -> np.ndarray:
    """`grey`, (rows, columns) uint8, as (side, side) uint8; see `read_digit`.

    Raises:
        ImageError: nothing is drawn on it.
    """
    ink = find_ink(grey)
    if ink is None:
        raise ImageError(f"expected a digit in {name}, got a uniform picture")
    ink = _cropped(ink)
    if (margin := _missing(ink, form)) > 0:
        ink = _cropped(thickened(ink, margin))
    digit = _scaled(ink, form.box)
    top, left = _place(digit, form)
    canvas = np.zeros((form.side, form.side))
    canvas[top : top + digit.shape[0], left : left + digit.shape[1]] = digit
    return np.rint(canvas * form.white).astype(np.uint8)


def _cropped(ink: np.ndarray) -> np.ndarray:
    rows, columns = (np.flatnonzero(ink.any(axis=axis)) for axis in (1, 0))
    return ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _missing(ink: np.ndarray, form: Form) -> float:
    """What a stroke lacks on either side so that, scaled, it is `form.pen` wide."""
    side = max(ink.shape)
    if side < _MEASURABLE * form.box:
        return 0.0
    return (form.pen * side - form.box * pen_width(ink)) / (form.box - form.pen) / 2


def _read_grey(file: BinaryIO, name: str) -> np.ndarray:
    try:
        with warnings.catch_warnings():
            # Pillow warns of sizes that are refused below, before any decoding.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(file, formats=("PNG", "JPEG"))
        with image:
            if image.width * image.height > _MAX_PIXELS:
                raise ImageError(
                    f"expected at most {_MAX_PIXELS:,} pixels, got {image.width} x "
                    f"{image.height} in {name}"
                )
            return np.asarray(_reduced(_grey(ImageOps.exif_transpose(image))))
    except ImageError:
        raise
    except Image.DecompressionBombError as error:
        raise ImageError(
            f"expected at most {_MAX_PIXELS:,} pixels, got more in {name}"
        ) from error
    except UnidentifiedImageError as error:  # Its message names the file object.
        raise ImageError(f"expected a PNG or JPEG, got {name}") from error
    except Exception as error:  # Pillow's decoders raise many kinds for damage.
        raise ImageError(f"expected a PNG or JPEG, got {name} ({error})") from error


def _grey(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        image = _of_8_bits(image)
    if image.has_transparency_data:
        return _flattened(image)
    return image.convert("L")


def _of_8_bits(image: Image.Image) -> Image.Image:
    """16-bit grey, which Pillow clips at 255 instead of scaling it."""
    values = np.asarray(image)
    grey = Image.fromarray((values >> 8).astype(np.uint8))
    # PNG: one value of the 16 bits is transparent.
    transparent = image.info.get("transparency")
    if transparent is not None:
        grey.putalpha(Image.fromarray((values != transparent).astype(np.uint8) * 255))
    return grey


def _flattened(image: Image.Image) -> Image.Image:
    """On white paper, or on black for light ink, which would not show on white."""
    on_white = _on_paper(image, "white")
    shows = np.ptp(np.asarray(on_white)) >= LEAST_CONTRAST
    return on_white if shows else _on_paper(image, "black")


def _on_paper(image: Image.Image, color: str) -> Image.Image:
    image = image.convert("RGBA")
    paper = Image.new("RGBA", image.size, color)
    return Image.alpha_composite(paper, image).convert("L")


def _reduced(image: Image.Image) -> Image.Image:
    factor = math.ceil(max(image.size) / _LARGE_SIDE)
    return image.reduce(factor) if factor > 1 else image


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
