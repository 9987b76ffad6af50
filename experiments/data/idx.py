"""MNIST's own file format: gzipped IDX files of unsigned bytes."""

import gzip
import math
import os
import struct
import zlib

import numpy as np

from experiments.errors import RunError

_UNSIGNED_BYTE = 0x08


def read_idx(path: str | os.PathLike[str], shape: tuple[int, ...]) -> np.ndarray:
    """The uint8 array of exactly `shape` in the gzipped IDX file at `path`.

    No more memory is taken than `shape` asks for, whatever the file says.

    Raises:
        RunError: a damaged gzip stream, another header, too few or too many bytes.
    """
    header = struct.pack(f">HBB{len(shape)}I", 0, _UNSIGNED_BYTE, len(shape), *shape)
    size = len(header) + math.prod(shape)
    try:
        with gzip.open(path, "rb") as file:
            content = file.read(size + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise RunError(f"{path}: expected a gzipped IDX file, got {error}") from error
    if content[: len(header)] != header:
        raise RunError(
            f"{path}: expected an IDX header of unsigned bytes of shape {shape}, "
            f"got {content[: len(header)].hex()}"
        )
    if len(content) != size:
        came = "more" if len(content) > size else f"{len(content)}"
        raise RunError(f"{path}: expected {size} bytes unpacked, got {came}")
    return np.frombuffer(content, np.uint8, offset=len(header)).reshape(shape)
