"""The embedded default data: scikit-learn's 1,797 real 8x8 digits."""

import numpy as np

from experiments.data.dataset import WHOLE, Dataset, Share, Split

NAME = "digits"
SIDE, WHITE = 8, 16
_TEST_EXAMPLES = 360


def load(share: Share = WHOLE) -> Dataset:
    """8 rows of 8 pixels of 0 to 16; 1,437 training and 360 test examples.

    The split is stratified by label and always the same one.
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    bunch = load_digits()
    images = bunch.images.astype(np.uint8)
    labels = bunch.target.astype(np.int32)
    train, test = train_test_split(
        np.arange(len(labels)),
        test_size=_TEST_EXAMPLES,
        stratify=labels,
        random_state=0,
    )
    return Dataset(
        name=NAME,
        train=_share(images[train], labels[train], share),
        test=_share(images[test], labels[test], share),
        white=WHITE,
    )


def _share(images: np.ndarray, labels: np.ndarray, share: Share) -> Split:
    rows = share.rows(len(labels))
    return Split(images[rows], labels[rows], total=len(labels))
