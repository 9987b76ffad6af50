"""MNIST and Fashion-MNIST: prepared once by tensorflow-datasets, read in seconds."""

import contextlib
import io
import os
import pathlib
import sys
import threading

import numpy as np

from experiments.data.dataset import WHOLE, Dataset, Share, Split
from experiments.errors import RunError, require_no_pattern

NAME, FASHION = "mnist", "fashion_mnist"
TITLES = {NAME: "MNIST", FASHION: "Fashion-MNIST"}
SIDE, WHITE = 28, 255
FILES = (
    "train-images-idx3-ubyte.gz",
    "train-labels-idx1-ubyte.gz",
    "t10k-images-idx3-ubyte.gz",
    "t10k-labels-idx1-ubyte.gz",
)
WITHOUT_NETWORK = (
    "with the four upstream files in a folder, --manual_dir=FOLDER needs no network"
)
_PROBE_SECONDS = 3.0


def load(
    data_dir: str | None,
    manual_dir: str | None,
    share: Share = WHOLE,
    name: str = NAME,
) -> Dataset:
    """The dataset from `data_dir`, prepared there first if it is not yet.

    Args:
        data_dir: TFDS's folder; None is its default, `~/tensorflow_datasets`.
        manual_dir: folder that may hold the four upstream files; None is TFDS's
            default, `downloads/manual` in `data_dir` (for Fashion-MNIST, whose files
            have the same names, the folder `fashion_mnist` in it). What is not there
            is downloaded. Size and SHA-256 are checked either way.
        share: which part of the examples to read.
        name: `mnist` or `fashion_mnist`.

    Raises:
        RunError: it is unavailable, or a file is damaged (both checksums are named).
    """
    require_manual_dir(manual_dir)
    builder = _builder(name, data_dir)
    if not builder.is_prepared():
        # Checked first, since TFDS retries an unreachable host for minutes.
        reason = _why_unpreparable(builder, manual_dir)
        if reason is not None:
            raise RunError(f"{TITLES[name]}: {reason}; {WITHOUT_NETWORK}")
        try:
            _prepare(builder, manual_dir, TITLES[name])
        except RunError:
            builder = _builder(name, data_dir)
            if not builder.is_prepared():  # Not by another run either.
                raise
    return Dataset(
        name=name,
        train=_read(builder, "train", share),
        test=_read(builder, "test", share),
        white=WHITE,
    )


def require_manual_dir(manual_dir: str | None) -> None:
    """Raises a RunError if it is given but is not a folder."""
    if manual_dir is not None and not os.path.isdir(manual_dir):
        raise RunError(f"--manual_dir: expected a folder, got {manual_dir}")


def why_unavailable(data_dir: str | None, manual_dir: str | None) -> str | None:
    """Why MNIST can't be had within seconds, or None if it can."""
    try:
        builder = _builder(NAME, data_dir)
    except RunError as error:
        return str(error)
    return None if builder.is_prepared() else _why_unpreparable(builder, manual_dir)


def _why_unpreparable(builder, manual_dir: str | None) -> str | None:
    folder = manual_dir or _default_manual_dir(builder)
    missing = [name for name in FILES if not os.path.exists(os.path.join(folder, name))]
    if not missing:
        return None
    problem = _why_unreachable(builder.URL)
    if problem is None:
        return None
    return (
        f"it is not prepared in {builder.data_dir}, {folder} lacks "
        f"{', '.join(missing)}, and the download host can't be reached ({problem})"
    )


def _builder(name: str, data_dir: str | None):
    try:
        import array_record.python.array_record_module  # noqa: F401
        from tensorflow_datasets.core import constants

        from experiments.data.mnist_rows import FashionMnistRows, MnistRows
    except ImportError as error:
        raise RunError(
            f"{TITLES[name]} needs tensorflow-datasets and array_record, "
            f"and they can't be imported here: {error}; --dataset=digits needs neither"
        ) from error
    make = {NAME: MnistRows, FASHION: FashionMnistRows}[name]
    if data_dir is None and constants.DATA_DIR.startswith("~"):
        raise RunError("--data_dir: expected a folder, as there is no home directory")
    try:
        builder = make(data_dir=data_dir, file_format="array_record")
    except (OSError, ImportError) as error:  # The latter for gs:// without gcsfs.
        raise RunError(f"--data_dir: expected a usable folder, got {error}") from error
    except Exception as error:  # From protobuf, for a damaged dataset_info.json.
        raise RunError(
            f"--data_dir: the folder {make.name} in {data_dir or 'its default'} "
            f"can't be read ({type(error).__name__}: {error}); remove it to prepare it "
            f"again"
        ) from error
    require_no_pattern("--data_dir", str(builder.data_dir), "TFDS")
    return builder


def _default_manual_dir(builder) -> str:
    # builder.data_dir is <root>/<name>/<version>; downloads lie beside the name.
    root = pathlib.Path(builder.data_dir).parents[1]
    folder = root / "downloads" / "manual"
    return str(folder / FASHION if builder.name.startswith(FASHION) else folder)


def _prepare(builder, manual_dir: str | None, title: str) -> None:
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.download.download_manager import (
        NonMatchingChecksumError,
    )

    if not sys.stderr.isatty():
        tfds.disable_progress_bar()
    download_config = tfds.download.DownloadConfig(
        manual_dir=manual_dir or _default_manual_dir(builder),
        force_checksums_validation=True,
        try_download_gcs=False,
    )
    print(f"Preparing {title} in {builder.data_dir}, once", flush=True)
    try:
        # TFDS announces a download even where there is none.
        with contextlib.redirect_stdout(io.StringIO()):
            builder.download_and_prepare(download_config=download_config)
    except RunError:
        raise
    except NonMatchingChecksumError as error:
        message = str(error).partition("To debug")[0]
        raise RunError(
            f"--manual_dir: a damaged file, or another dataset's (the files of MNIST "
            f"and Fashion-MNIST have the same names): {message}"
            if manual_dir is not None and _is_in(manual_dir, message)
            else f"--data_dir: a damaged file: {message}"
        ) from error
    except Exception as error:  # TFDS lets the errors of several libraries through.
        of_file = manual_dir is not None and _is_in(manual_dir, str(error))
        raise RunError(
            f"--manual_dir: a file can't be read: {error}"
            if of_file
            else f"--data_dir: {title} could not be prepared in {builder.data_dir}: "
            f"{type(error).__name__}: {error}"
        ) from error


def _is_in(manual_dir: str, message: str) -> bool:
    """Whether TFDS's message names a file of that folder, and no download."""
    return os.path.join(pathlib.Path(manual_dir), "") in message


def _read(builder, split: str, share: Share) -> Split:
    source = builder.as_data_source(split)
    try:
        examples = source.__getitems__(share.rows(len(source)))
    except Exception as error:  # array_record raises its own kinds for damage.
        raise RunError(
            f"--data_dir: the prepared data in {builder.data_dir} can't be read "
            f"({error}); remove that folder to prepare it again"
        ) from error
    return Split(
        images=np.stack([example["image"] for example in examples]),
        labels=np.array([example["label"] for example in examples], np.int32),
        total=len(source),
    )


def _why_unreachable(url: str) -> str | None:
    """Sends the download host a HEAD request, within `_PROBE_SECONDS` in all.

    In a thread of its own, since no timeout covers the DNS lookup.
    """
    outcome = [f"no answer within {_PROBE_SECONDS:.0f} s"]

    def probe():
        import requests

        try:
            response = requests.head(url + FILES[-1], timeout=_PROBE_SECONDS)
            response.raise_for_status()
        except requests.RequestException as error:
            outcome[0] = type(error).__name__
        else:
            outcome[0] = ""

    thread = threading.Thread(target=probe, daemon=True)
    thread.start()
    thread.join(_PROBE_SECONDS)
    return outcome[0] or None
