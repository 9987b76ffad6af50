"""What every dataset of the experiments looks like."""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Share:
    """The share of the examples that process `index` of `count` reads."""

    index: int = 0
    count: int = 1

    def rows(self, total: int) -> range:
        """This process's rows of `total`, in blocks of equal size but for the last."""
        block = -(-total // self.count)
        first = min(self.index * block, total)
        return range(first, min(first + block, total))


WHOLE = Share()


@dataclasses.dataclass(frozen=True)
class Split:
    """Examples of one split, or a process's share of them.

    `images` is (N, rows, columns) uint8, `labels` (N,) int32; `total` is the number
    of examples in all shares together.
    """

    images: np.ndarray
    labels: np.ndarray
    total: int = -1

    def __post_init__(self) -> None:
        if self.total < 0:
            object.__setattr__(self, "total", len(self.labels))

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
    def image_shape(self) -> tuple[int, int]:
        """Rows and columns of an image."""
        return self.train.images.shape[1:]

    def split(self, name: str) -> Split:
        return {"train": self.train, "test": self.test}[name]

    def validating(self, share: Share = WHOLE) -> "Dataset":
        """The last sixth of the training examples as test split, the others to train.

        This dataset has to be whole; the result holds `share` of it.
        """
        first = len(self.train) - len(self.train) // 6

        def part(begin: int, end: int) -> Split:
            rows = share.rows(end - begin)
            where = slice(begin + rows.start, begin + rows.stop)
            images, labels = self.train.images[where], self.train.labels[where]
            return Split(images, labels, total=end - begin)

        train, test = part(0, first), part(first, len(self.train))
        return dataclasses.replace(self, train=train, test=test)
