"""The datasets: IDX files, the TFDS builder, the embedded digits, and `auto`."""

import gzip
import hashlib
import importlib.util
import os
import pathlib
import struct
import sys

import numpy as np
import pytest

pytest.importorskip("tensorflow_datasets", reason="it prepares MNIST")

from experiments.data import choose, digits, mnist, mnist_rows
from experiments.data.dataset import Share
from experiments.data.idx import read_idx
from experiments.errors import RunError

REAL_MNIST = pathlib.Path(
    os.environ.get("MNIST_DIR", pathlib.Path(__file__).parents[3] / "shared" / "mnist")
)
needs_real_mnist = pytest.mark.skipif(
    not (REAL_MNIST / mnist.FILES[0]).exists(),
    reason=f"needs MNIST's upstream files in {REAL_MNIST} (set MNIST_DIR)",
)
needs_array_record = pytest.mark.skipif(
    sys.platform != "linux" and importlib.util.find_spec("array_record") is None,
    reason="needs array_record, which has no wheel for this machine",
)
SMALL = {"train": ("train", 20), "test": ("t10k", 7)}


def idx_bytes(array):
    header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    return header + array.tobytes()


def write_small_mnist(folder):
    """Made-up files under MNIST's names; returns the arrays by (split, kind)."""
    rng = np.random.default_rng(0)
    arrays = {}
    for split, (stem, count) in SMALL.items():
        images = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = rng.integers(0, 10, count, dtype=np.uint8)
        for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
            path = folder / f"{stem}-{kind}-ubyte.gz"
            path.write_bytes(gzip.compress(idx_bytes(array)))
            arrays[split, kind] = array
    return arrays


@pytest.fixture
def small_mnist(tmp_path, monkeypatch):
    """Has `mnist.load` take made-up files, with their checksums registered."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.download import checksums

    from experiments.data import mnist_rows

    folder = tmp_path / "manual"
    folder.mkdir()
    arrays = write_small_mnist(folder)
    infos = {}
    for name in mnist.FILES:
        content = (folder / name).read_bytes()
        infos[mnist_rows.MnistRows.URL + name] = checksums.UrlInfo(
            size=tfds.core.utils.Size(len(content)),
            checksum=hashlib.sha256(content).hexdigest(),
            filename=name,
        )
    monkeypatch.setattr(mnist_rows.MnistRows, "SPLITS", SMALL)
    monkeypatch.setattr(mnist_rows.MnistRows, "url_infos", infos)
    monkeypatch.setattr(mnist, "_why_unreachable", lambda url: "no network in tests")
    return folder, arrays


def test_idx_file_gives_its_array(tmp_path):
    array = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    path = tmp_path / "file.gz"
    path.write_bytes(gzip.compress(idx_bytes(array)))
    np.testing.assert_array_equal(read_idx(path, (2, 3, 4)), array)


ARRAY = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
BAD_IDX = {
    "not gzipped": (idx_bytes(ARRAY), "expected a gzipped IDX file"),
    "gzip cut short": (gzip.compress(idx_bytes(ARRAY))[:-9], "gzipped IDX file"),
    "other shape": (gzip.compress(idx_bytes(ARRAY[:1])), "expected an IDX header"),
    "too few bytes": (gzip.compress(idx_bytes(ARRAY)[:-1]), "expected 40 bytes"),
    "too many bytes": (gzip.compress(idx_bytes(ARRAY) + b"x"), "expected 40 bytes"),
    "empty": (b"", "expected an IDX header"),
}


@pytest.mark.parametrize(("content", "message"), BAD_IDX.values(), ids=BAD_IDX)
def test_damaged_idx_file_is_named(tmp_path, content, message):
    path = tmp_path / "file.gz"
    path.write_bytes(content)
    with pytest.raises(RunError, match=message) as caught:
        read_idx(path, ARRAY.shape)
    assert str(path) in str(caught.value)


@needs_array_record
def test_a_folder_that_tfds_would_not_find_again_is_refused(small_mnist, tmp_path):
    data_dir = str(tmp_path / "data[1]")
    message = r"^--data_dir: expected a path without \[, which TFDS takes for a pattern"
    with pytest.raises(RunError, match=message):
        mnist.load(data_dir, str(small_mnist[0]))
    assert not os.path.exists(data_dir)


@needs_array_record
def test_builder_prepares_once_and_reads_what_the_files_hold(small_mnist, tmp_path):
    folder, arrays = small_mnist
    data_dir = str(tmp_path / "data")
    first = mnist.load(data_dir, str(folder))
    again = mnist.load(data_dir, None)  # Prepared: the files are not asked for.
    for data in (first, again):
        for name in ("train", "test"):
            images, labels = arrays[name, "images-idx3"], arrays[name, "labels-idx1"]
            split = data.split(name)
            assert split.images.dtype == np.uint8
            # TFDS stores examples in an order of its own (a hash of their keys).
            found = sorted(zip(split.images.tolist(), split.labels, strict=True))
            assert found == sorted(zip(images.tolist(), labels, strict=True))
    assert "tensorflow" not in sys.modules


@needs_array_record
def test_a_process_reads_its_share_and_knows_of_the_others(small_mnist, tmp_path):
    data_dir, folder = str(tmp_path / "data"), str(small_mnist[0])
    whole = mnist.load(data_dir, folder)
    parts = [mnist.load(data_dir, folder, Share(index, 2)) for index in range(2)]
    for name, total in (("train", 20), ("test", 7)):
        joined = [part.split(name).images for part in parts]
        expected = whole.split(name).images
        np.testing.assert_array_equal(np.concatenate(joined), expected)
        assert [part.split(name).total for part in parts] == [total, total]


@needs_array_record
@pytest.mark.parametrize(
    ("name", "folder"), [("mnist", ""), ("fashion_mnist", "/fashion_mnist")]
)
def test_files_of_the_same_names_lie_in_different_folders(
    name, folder, tmp_path, monkeypatch
):
    monkeypatch.setattr(mnist, "_why_unreachable", lambda url: "no network in tests")
    expected = rf" {tmp_path}/downloads/manual{folder} lacks {mnist.FILES[0]}, "
    with pytest.raises(RunError, match=expected):
        mnist.load(str(tmp_path), None, name=name)


@needs_array_record
def test_a_damaged_file_is_of_the_manual_folder_however_that_is_written(
    small_mnist, tmp_path, monkeypatch
):
    folder, _ = small_mnist
    path = folder / mnist.FILES[0]
    path.write_bytes(path.read_bytes()[:-5])
    monkeypatch.chdir(folder.parent)
    for written in (f"./{folder.name}", f"{folder.parent}//{folder.name}"):
        with pytest.raises(RunError, match=r"^--manual_dir: a damaged file"):
            mnist.load(str(tmp_path / "data"), written)


@needs_array_record
def test_a_file_that_cannot_be_read_is_of_the_manual_folder(small_mnist, tmp_path):
    folder, _ = small_mnist
    file = folder / mnist.FILES[-1]
    file.unlink()
    file.mkdir()
    with pytest.raises(RunError, match=rf"^--manual_dir: a file can't.*{file.name}"):
        mnist.load(str(tmp_path / "data"), str(folder))


@needs_array_record
def test_a_kind_of_path_that_needs_a_package_names_both(monkeypatch):
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    message = "^--data_dir: expected a usable folder, got .*gcsfs"
    with pytest.raises(RunError, match=message):
        mnist.load("gs://no-such-bucket/data", None)


@needs_array_record
@pytest.mark.parametrize("name", mnist.FILES)
def test_damaged_upstream_file_is_named_with_both_checksums(
    small_mnist, tmp_path, name
):
    folder, _ = small_mnist
    path = folder / name
    content = path.read_bytes()
    path.write_bytes(content[:-5])
    data_dir = tmp_path / "data"
    with pytest.raises(RunError, match="wrong checksum") as caught:
        mnist.load(str(data_dir), str(folder))
    for expected in (content, content[:-5]):
        assert hashlib.sha256(expected).hexdigest() in str(caught.value)
    assert str(path) in str(caught.value)
    # Nothing half-prepared: with the file mended, the same folder serves.
    assert not list(data_dir.glob("mnist_rows/1.0.0/*"))
    path.write_bytes(content)
    assert len(mnist.load(str(data_dir), str(folder)).test) == 7


DEBIAN = pathlib.Path("/usr/share/datasets/fashion-mnist")
# When the upstream files were packed, which stands in their gzip headers.
PACKED = {"train": 1504176606, "t10k": 1504176627}


def write_upstream_fashion_mnist(folder):
    """From Debian's files, which are upstream's but for the gzip header.

    Debian leaves out the name and has its own time there.
    """
    for name in mnist.FILES:
        packed = (DEBIAN / name).read_bytes()
        time = struct.pack("<I", PACKED[name.partition("-")[0]])
        header = b"\x1f\x8b\x08\x08" + time + packed[8:10]
        header += name.removesuffix(".gz").encode() + b"\0"
        (folder / name).write_bytes(header + packed[10:])


@needs_array_record
@pytest.mark.slow
@pytest.mark.skipif(
    not DEBIAN.exists(), reason="needs Debian's package dataset-fashion-mnist"
)
def test_fashion_mnist_from_its_upstream_files(tmp_path):
    folder = tmp_path / "data" / "downloads" / "manual" / "fashion_mnist"
    folder.mkdir(parents=True)
    write_upstream_fashion_mnist(folder)
    data = choose.load("fashion_mnist", str(tmp_path / "data"), None)
    assert data.name == "fashion_mnist"
    for split, each in ((data.train, 6_000), (data.test, 1_000)):
        np.testing.assert_array_equal(np.bincount(split.labels), [each] * 10)
    # Its pixels' mean, the 72.94 of 255 that is in wide use as 0.2860.
    assert data.train.images.mean() / data.white == pytest.approx(0.2860, abs=5e-5)


@needs_array_record
def test_two_runs_that_prepare_at_once(small_mnist, tmp_path, monkeypatch):
    folder, arrays = small_mnist
    data_dir = str(tmp_path / "data")
    prepare = mnist_rows.MnistRows.download_and_prepare

    def prepare_second(builder, **options):
        other = mnist_rows.MnistRows(data_dir=data_dir, file_format="array_record")
        prepare(other, **options)
        prepare(builder, **options)  # Would be done again, and finds it there.
        raise FileExistsError("Cannot rename, it is there")

    monkeypatch.setattr(mnist_rows.MnistRows, "download_and_prepare", prepare_second)
    data = mnist.load(data_dir, str(folder))
    assert data.train.total == len(arrays["train", "labels-idx1"])


@needs_array_record
def test_a_damaged_description_is_named(small_mnist, tmp_path):
    folder, _ = small_mnist
    data_dir = tmp_path / "data"
    mnist.load(str(data_dir), str(folder))
    (description,) = data_dir.rglob("dataset_info.json")
    description.write_text(description.read_text()[:300])
    with pytest.raises(RunError, match=r"^--data_dir: the folder mnist_rows in .*data"):
        mnist.load(str(data_dir), str(folder))
    choice = choose.choose("auto", None, str(data_dir), str(folder))
    assert choice.name == "digits"
    assert "mnist_rows" in choice.reason


@needs_array_record
def test_missing_manual_folder_is_an_error(small_mnist, tmp_path):
    data_dir = str(tmp_path / "data")
    mnist.load(data_dir, str(small_mnist[0]))  # Prepared or not.
    with pytest.raises(RunError, match=r"^--manual_dir: expected a folder"):
        mnist.load(data_dir, str(tmp_path / "nowhere"))


@pytest.mark.parametrize("wanted", ["auto", "mnist", "digits"])
def test_missing_manual_folder_is_no_reason_for_digits(wanted, tmp_path):
    with pytest.raises(RunError, match=r"^--manual_dir: expected a folder, got .*none"):
        choose.choose(wanted, None, None, str(tmp_path / "none"))


@needs_real_mnist
@needs_array_record
@pytest.mark.slow
def test_real_mnist(tmp_path):
    data = mnist.load(str(tmp_path), str(REAL_MNIST))
    assert data.train.images.shape == (60_000, 28, 28)
    assert data.test.images.shape == (10_000, 28, 28)
    # The class counts that are known of MNIST.
    counts = [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert np.bincount(data.test.labels).tolist() == counts
    assert data.train.images.max() == mnist.WHITE


def test_digits_are_split_by_class_and_always_alike():
    data, again = digits.load(), digits.load()
    assert (len(data.train), len(data.test)) == (1437, 360)
    assert data.train.images.shape[1:] == (8, 8)
    assert data.train.images.max() == data.white
    shares = np.bincount(data.test.labels) / np.bincount(
        np.concatenate([data.train.labels, data.test.labels])
    )
    # One example more or less in a class of about 180.
    np.testing.assert_allclose(shares, 360 / 1797, atol=1 / 170)
    np.testing.assert_array_equal(data.test.images, again.test.images)


@needs_array_record
def test_auto_takes_mnist_that_is_at_hand(small_mnist, tmp_path):
    folder, _ = small_mnist
    choice = choose.choose("auto", None, str(tmp_path / "data"), str(folder))
    assert choice == choose.Choice("mnist")


@needs_array_record
def test_auto_without_mnist_takes_digits_and_says_why(small_mnist, tmp_path):
    folder, _ = small_mnist
    (folder / mnist.FILES[1]).unlink()
    choice = choose.choose("auto", None, str(tmp_path / "data"), str(folder))
    assert choice.name == "digits"
    assert mnist.FILES[1] in choice.reason
    assert "no network in tests" in choice.reason
    announcement = choose.announcement(choice)
    assert choice.reason in announcement
    assert "NOT MNIST" in announcement
    assert "--manual_dir" in announcement


def test_auto_follows_the_recorded_dataset():
    recorded = choose.Choice("digits", "some reason")
    assert choose.choose("auto", recorded, None, None) is recorded
    with pytest.raises(RunError, match=r"expected 'digits'.*got 'mnist'"):
        choose.choose("mnist", recorded, None, None)
