"""tensorflow-datasets builders of MNIST and Fashion-MNIST that need no TensorFlow.

The stock builders unpack and encode images with TensorFlow. These download the same
files (`checksums.tsv`: URL, size, SHA-256, name, as TFDS records them),
but unpack them in Python and write plain arrays to array_record files.
"""

from typing import Any

import numpy as np
import tensorflow_datasets.public_api as tfds

from experiments.data.idx import read_idx

IMAGE_SHAPE = (28, 28)


class _Rows(
    tfds.core.GeneratorBasedBuilder,
    skip_registration=True,  # type: ignore[call-arg]
):
    """70,000 images of ten classes, (28, 28) uint8 each, white (255) on black."""

    VERSION = tfds.core.Version("1.0.0")
    URL: str
    DESCRIPTION: str
    HOMEPAGE: str

    # For each split: the stem of its files' names, and the number of examples.
    SPLITS = {"train": ("train", 60_000), "test": ("t10k", 10_000)}  # noqa: RUF012

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(
            description=self.DESCRIPTION,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Tensor(shape=IMAGE_SHAPE, dtype=np.uint8),
                    "label": tfds.features.ClassLabel(num_classes=10),
                }
            ),
            supervised_keys=("image", "label"),
            homepage=self.HOMEPAGE,
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        files = dl_manager.download(
            {
                (split, kind): f"{self.URL}{stem}-{kind}-ubyte.gz"
                for split, (stem, _) in self.SPLITS.items()
                for kind in ("images-idx3", "labels-idx1")
            }
        )
        return {
            split: self._generate_examples(
                files[split, "images-idx3"], files[split, "labels-idx1"], count
            )
            for split, (_, count) in self.SPLITS.items()
        }

    def _generate_examples(self, images_path, labels_path, count):
        images = read_idx(images_path, (count, *IMAGE_SHAPE))
        labels = read_idx(labels_path, (count,))
        for index, (image, label) in enumerate(zip(images, labels, strict=True)):
            yield index, {"image": image, "label": int(label)}


class MnistRows(_Rows):
    """Handwritten digits."""

    URL = "https://storage.googleapis.com/cvdf-datasets/mnist/"
    DESCRIPTION = "MNIST handwritten digits, each image as its 28 rows."
    HOMEPAGE = "http://yann.lecun.com/exdb/mnist/"


class FashionMnistRows(_Rows):
    """Articles of clothing."""

    URL = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
    DESCRIPTION = "Fashion-MNIST articles of clothing, each image as its 28 rows."
    HOMEPAGE = "https://github.com/zalandoresearch/fashion-mnist"
