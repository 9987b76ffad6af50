"""What every dataset of the experiments looks like."""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Split:
    """Examples of one split.

    `images` is (N, rows, columns) uint8, `labels` (N,) int32.
    """

    images: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Grey images, white on black, to be read row by row.

    `white` is the pixel value of full ink; a model is fed `image / white`.
    """

    name: str
    train: Split
    test: Split
    white: int
    num_classes: int = 10

    @property
    def input_size(self) -> int:
        """Number of pixels in a row, the features of one step."""
        return self.train.images.shape[-1]

    def split(self, name: str) -> Split:
        return {"train": self.train, "test": self.test}[name]
