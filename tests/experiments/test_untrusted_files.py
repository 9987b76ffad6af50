"""Files from strangers: a result or one clear error, and memory that is bounded."""

import gzip
import io
import struct
import tracemalloc
import zlib

import hypothesis.strategies as st
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import HealthCheck, example, given, settings
from PIL import Image

from experiments.data.idx import read_idx
from experiments.errors import RunError
from experiments.images import FORMS, read_digit
from flax_lstm import params_from_torch

SHAPE = (3, 4, 4)
MNIST = FORMS["mnist"]


def idx_bytes():
    header = struct.pack(">HBB3I", 0, 8, 3, *SHAPE)
    return gzip.compress(header + bytes(range(48)), mtime=0)


def picture_bytes(form):
    image = np.full((40, 40), 255, np.uint8)
    image[8:30, 18:22] = 0
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, form)
    return buffer.getvalue()


def safetensors_bytes():
    shapes = {
        "weight_ih_l0": (8, 3),
        "weight_hh_l0": (8, 2),
        "bias_ih_l0": (8,),
        "bias_hh_l0": (8,),
    }
    return safetensors.numpy.save(
        {k: np.ones(s, np.float32) for k, s in shapes.items()}
    )


@st.composite
def damaged(draw, content):
    """`content` with a few bytes changed, cut out, doubled or put in."""
    content = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(content)))
        kind = draw(st.sampled_from(["change", "cut", "double", "insert", "end"]))
        if kind == "change" and at < len(content):
            content[at] = draw(st.integers(0, 255))
        elif kind == "cut":
            del content[at : at + draw(st.integers(1, 40))]
        elif kind == "double":
            content[at:at] = content[at : at + 40]
        elif kind == "insert":
            content[at:at] = draw(st.binary(max_size=12))
        elif kind == "end":
            del content[at:]
    return bytes(content)


# One folder for all examples is enough: each overwrites the file of the last.
fuzz = settings(
    max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def attempt(call, refusal):
    """The result and None, or None and what the refusal says."""
    try:
        return call(), None
    except refusal as error:
        return None, str(error)


@given(damaged(idx_bytes()))
@fuzz
def test_idx(tmp_path, content):
    path = tmp_path / "file.gz"
    path.write_bytes(content)
    array, refusal = attempt(lambda: read_idx(path, SHAPE), RunError)
    if refusal is None:
        assert (array.shape, array.dtype) == (SHAPE, np.uint8)
    else:
        assert str(path) in refusal


@pytest.mark.parametrize("form", ["PNG", "JPEG"])
@given(st.data())
@fuzz
def test_picture(tmp_path, form, data):
    path = tmp_path / "picture"
    path.write_bytes(data.draw(damaged(picture_bytes(form))))
    digit, refusal = attempt(lambda: read_digit(str(path), MNIST), RunError)
    if refusal is None:
        assert (digit.shape, digit.dtype) == ((28, 28), np.uint8)
    else:
        assert "--image" in refusal


@given(damaged(safetensors_bytes()))
@example(struct.pack("<Q", 2**60) + b"{}")
@example(struct.pack("<Q", 2) + b"{}")
@fuzz
def test_safetensors(tmp_path, content):
    path = tmp_path / "file.safetensors"
    path.write_bytes(content)
    params, refusal = attempt(lambda: params_from_torch(path), ValueError)
    if refusal is None:
        assert params["layer_0"]["hi"]["kernel"].shape == (2, 2)
    else:
        assert "state_dict" in refusal


def peak_memory(call):
    tracemalloc.start()
    try:
        with pytest.raises(RunError):
            call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_gzip_bomb_is_not_unpacked(tmp_path):
    path = tmp_path / "bomb.gz"
    with gzip.open(path, "wb") as file:
        for _ in range(256):
            file.write(bytes(2**20))
    assert path.stat().st_size < 2**20
    assert peak_memory(lambda: read_idx(path, SHAPE)) < 2**23


def png_that_says(width, height):
    """A PNG of a few bytes whose header claims so many pixels."""

    def chunk(kind, body):
        checksum = zlib.crc32(kind + body)
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", checksum)

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(bytes(1000)))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("side", [9_000, 100_000, 2**31 - 1])
def test_a_picture_whose_header_lies_takes_no_memory(tmp_path, side):
    path = tmp_path / "bomb.png"
    path.write_bytes(png_that_says(side, side))
    assert peak_memory(lambda: read_digit(str(path), MNIST)) < 2**23
