"""Pictures of digits, brought to the form of a dataset."""

import numpy as np
import pytest
from PIL import Image, ImageDraw

from experiments import images
from experiments.data import digits
from experiments.errors import RunError
from experiments.images import FORMS, read_digit, to_form

MNIST = FORMS["mnist"]


def drawn_seven(size=(300, 200), at=(40, 20), ink=0, paper=255, mode="L"):
    image = Image.new("L", size, paper)
    x, y = at
    points = [(x, y), (x + 90, y), (x + 40, y + 140)]
    ImageDraw.Draw(image).line(points, fill=ink, width=14)
    return image.convert(mode)


def saved(image, tmp_path, name="digit.png"):
    path = tmp_path / name
    image.save(path)
    return str(path)


def test_mnist_form_is_a_20_pixel_digit_with_its_mass_at_pixel_14(tmp_path):
    digit = read_digit(saved(drawn_seven(), tmp_path), MNIST)
    assert (digit.shape, digit.dtype) == ((28, 28), np.uint8)
    rows = np.flatnonzero(digit.any(axis=1))
    assert rows[-1] - rows[0] + 1 == 20
    mass = digit / digit.sum()
    # Whole pixels are shifted, so half a pixel may remain.
    assert abs(mass.sum(axis=1) @ np.arange(28) - 14) <= 0.5
    assert abs(mass.sum(axis=0) @ np.arange(28) - 14) <= 0.5
    assert digit.max() > 250


VARIANTS = {
    "elsewhere": {"at": (150, 50)},
    "light on dark": {"ink": 255, "paper": 0},
    "grey on grey": {"ink": 60, "paper": 200},
    "in colour": {"mode": "RGB"},
    "with a palette": {"mode": "P"},
    "16 bit": {"mode": "I;16"},
    "larger sheet": {"size": (900, 700), "at": (600, 400)},
}


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
def test_same_digit_from_another_picture(tmp_path, options):
    expected = read_digit(saved(drawn_seven(), tmp_path), MNIST).astype(int)
    mode = options.get("mode")
    image = drawn_seven(**{**options, "mode": "L"})
    if mode == "I;16":
        image = Image.fromarray(np.asarray(image).astype(np.uint16) * 257)
    elif mode:
        image = image.convert(mode)
    digit = read_digit(saved(image, tmp_path, "other.png"), MNIST).astype(int)
    # Rounding of the grey levels; a digit one pixel off would differ by about 20.
    assert abs(digit - expected).mean() < 1


@pytest.mark.parametrize("transparent", [65535, 1], ids=["paper", "nothing"])
def test_16_bit_grey_of_which_one_value_is_transparent(transparent, tmp_path):
    seven = drawn_seven()
    expected = read_digit(saved(seven, tmp_path), MNIST).astype(int)
    # All of it above 255, where Pillow clips.
    grey = np.asarray(seven).astype(np.uint16) * 128 + 32895
    path = str(tmp_path / "other.png")
    Image.fromarray(grey).save(path, transparency=transparent)
    with Image.open(path) as image:
        assert (image.mode, image.info["transparency"]) == ("I;16", transparent)
    digit = read_digit(path, MNIST).astype(int)
    assert abs(digit - expected).mean() < 1


@pytest.mark.parametrize("ink", [0, 250, 255], ids=["black", "off_white", "white"])
def test_transparent_parts_are_the_paper_of_that_ink(ink, tmp_path):
    """White ink is what drawing programs in a dark mode have."""
    seven = drawn_seven()
    alpha = seven.point(lambda value: 255 - value)
    layers = [Image.new("L", seven.size, ink)] * 3 + [alpha]
    drawn = saved(Image.merge("RGBA", layers), tmp_path)
    digit = read_digit(drawn, MNIST).astype(int)
    expected = read_digit(saved(seven, tmp_path, "other.png"), MNIST).astype(int)
    assert abs(digit - expected).mean() < 1


def test_jpeg_is_turned_as_its_exif_says(tmp_path):
    upright = drawn_seven()
    exif = Image.Exif()
    exif[0x0112] = 6  # The camera was held a quarter turn to the left.
    path = tmp_path / "photo.jpg"
    upright.rotate(90, expand=True).save(path, exif=exif, quality=95)
    digit = read_digit(str(path), MNIST).astype(int)
    expected = read_digit(saved(upright, tmp_path), MNIST).astype(int)
    assert abs(digit - expected).mean() < 3  # JPEG's own losses.


def test_digits_of_the_embedded_data_come_back_almost_as_they_are():
    data = digits.load()
    form = FORMS["digits"]
    images = data.test.images
    full = images[(images[:, 0] > 2).any(1) & (images[:, -1] > 2).any(1)][:50]
    back = [to_form(image * 15, form, "x").astype(int) for image in full]
    # A column of dim pixels may be cut, which shifts a digit by half its width.
    assert np.median([abs(b - f).mean() for b, f in zip(back, full, strict=True)]) < 1


def test_a_single_dot_is_placed():
    grey = np.full((50, 50), 255, np.uint8)
    grey[20, 30] = 0
    assert to_form(grey, MNIST, "x").any()


@pytest.mark.parametrize(
    ("width", "reduced"), [(1024, 1024), (1025, 513), (2048, 1024), (2049, 683)]
)
def test_a_large_picture_is_reduced_first(tmp_path, monkeypatch, width, reduced):
    shapes = []
    monkeypatch.setattr(images, "find_ink", lambda grey: shapes.append(grey.shape))
    with pytest.raises(RunError, match="uniform"):
        read_digit(saved(Image.new("L", (width, 8)), tmp_path), MNIST)
    assert shapes[0][1] == reduced


BAD = {
    "text": (b"hello", "expected a PNG or JPEG"),
    "empty": (b"", "expected a PNG or JPEG"),
    "gif": (b"GIF89a\x01\x00\x01\x00\x00\x00\x00;", "expected a PNG or JPEG"),
}


@pytest.mark.parametrize(("content", "message"), BAD.values(), ids=BAD)
def test_no_image_is_refused(tmp_path, content, message):
    path = tmp_path / "digit.png"
    path.write_bytes(content)
    with pytest.raises(RunError, match=message):
        read_digit(str(path), MNIST)


def test_truncated_image_is_refused(tmp_path):
    path = tmp_path / "digit.png"
    drawn_seven().save(path)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(RunError, match="expected a PNG or JPEG"):
        read_digit(str(path), MNIST)


def test_missing_image_is_refused(tmp_path):
    with pytest.raises(RunError, match="no such file"):
        read_digit(str(tmp_path / "none.png"), MNIST)


def test_blank_paper_is_refused(tmp_path):
    path = saved(Image.new("L", (30, 30), 255), tmp_path)
    with pytest.raises(RunError, match="uniform picture"):
        read_digit(path, MNIST)


def test_a_png_that_pillow_takes_for_a_bomb_is_too_large(tmp_path):
    path = saved(Image.new("1", (20_000, 20_000)), tmp_path)
    with pytest.raises(RunError, match="expected at most 64,000,000 pixels, got more"):
        read_digit(path, MNIST)


def test_million_pixel_png_is_refused_before_it_is_decoded(tmp_path):
    path = saved(Image.new("1", (9000, 9000)), tmp_path)
    with pytest.raises(RunError, match="at most 64,000,000 pixels, got 9000 x 9000"):
        read_digit(path, MNIST)
