"""What the page asks for, as plain JSON values."""

import base64
import functools
import threading
from typing import Any, BinaryIO

import numpy as np

from experiments.data import choose, digits, mnist
from experiments.data.dataset import Dataset
from experiments.errors import RunError
from experiments.images import decode_digit
from experiments.reading import LayerTrace, read, require_rows_and_lstm
from experiments.restored import RestoredClassifier

HARDEST = 12


def find_test_digits(
    classifier: RestoredClassifier, data_dir: str | None, manual_dir: str | None
) -> Dataset | str:
    """The dataset that the model was trained on, or why it can't be had here."""
    name = classifier.dataset
    if name == mnist.NAME and (why := mnist.why_unavailable(data_dir, manual_dir)):
        return f"{mnist.TITLES[name]}: {why}; {mnist.WITHOUT_NETWORK}"
    try:
        return choose.load(name, data_dir, manual_dir, validate=classifier.validated)
    except RunError as error:
        return str(error)


def require_readable(classifier: RestoredClassifier) -> None:
    """Raises a RunError if the page has nothing to show of such a model."""
    require_rows_and_lstm(classifier)
    _ = classifier.form  # Raises, too.


class Reader:
    """A restored LSTM and the test digits of its dataset, or why there are none.

    Several requests may read at the same time.
    """

    def __init__(self, classifier: RestoredClassifier, data: Dataset | str):
        """Compiles the reading, so that the first request is as quick as others.

        Raises:
            RunError: the model is not an LSTM, or does not read rows of digits.
        """
        require_readable(classifier)
        self._classifier = classifier
        self._form = classifier.form
        self._data = data
        self._hardest_once = threading.Lock()
        self._one_picture = threading.Lock()
        self._read(np.zeros((self._form.side, self._form.side), np.uint8))

    def about(self) -> dict[str, Any]:
        """What the page says of the model, and which test digits there are."""
        model, data = self._classifier.model, self._data
        missing = data if isinstance(data, str) else None
        return {
            "dataset": self._classifier.dataset,
            "embedded": self._classifier.dataset == digits.NAME,
            "epoch": self._classifier.epoch,
            "layers": model.num_layers,
            "units": model.hidden_size,
            "directions": 2 if model.bidirectional else 1,
            "side": self._form.side,
            "classes": model.num_classes,
            "tests": 0 if isinstance(data, str) else len(data.test),
            "testsMissing": missing,
        }

    def read_picture(self, file: BinaryIO, name: str) -> dict[str, Any]:
        """What the model reads in a PNG or JPEG of a digit.

        Raises:
            ImageError: there is none in it.
        """
        with self._one_picture:  # The largest takes a gigabyte.
            digit = decode_digit(file, self._form, name)
        return self._read(digit)

    def read_test(self, index: int) -> dict[str, Any]:
        """What the model reads in the test digit of that index.

        Raises:
            IndexError: there is no such digit.
        """
        data = self._data
        if isinstance(data, str):
            raise IndexError(f"no test digits: {data}")
        if not 0 <= index < len(data.test):
            raise IndexError(
                f"test digit: expected 0 to {len(data.test) - 1}, got {index}"
            )
        answer = self._read(data.test.images[index])
        return {**answer, "index": index, "label": int(data.test.labels[index])}

    def hardest(self) -> list[dict[str, Any]]:
        """The test digits whose label the model believes least, worst first."""
        with self._hardest_once:  # A second request waits instead of computing too.
            return self._hardest

    @functools.cached_property
    def _hardest(self) -> list[dict[str, Any]]:
        data = self._data
        if isinstance(data, str):
            return []
        answers = self._classifier.answer_all(data)
        return [
            {
                "index": int(index),
                "label": int(answers.labels[index]),
                "answer": int(answers.answers[index]),
                "probability": float(answers.probabilities[index].max()),
                "image": self._bytes(data.test.images[index] / data.white),
            }
            for index in answers.hardest()[:HARDEST]
        ]

    def _read(self, image: np.ndarray) -> dict[str, Any]:
        white = self._form.white
        reading = read(self._classifier.model, self._classifier.variables, image, white)
        return {
            "image": self._bytes(image / white),
            "answer": reading.answer,
            # As float64: the float32 next to 0.0219 is 0.021900000050663948 in JSON.
            "probabilities": reading.probabilities.astype(float).round(4).tolist(),
            "layers": [self._layer(layer) for layer in reading.layers],
        }

    def _layer(self, layer: LayerTrace) -> dict[str, Any]:
        order = layer.units_by_peak()
        # A few units that count far would leave all others pale.
        limit = float(np.percentile(np.abs(layer.c), 99)) or 1.0
        return {
            "name": layer.name,
            "limit": round(limit, 2),
            **{gate: self._bytes(getattr(layer, gate)[:, order]) for gate in "ifo"},
            "c": self._bytes((layer.c[:, order] / limit + 1) / 2),
        }

    @staticmethod
    def _bytes(values: np.ndarray) -> str:
        """Values in [0, 1] (others are clipped) as base64 of a byte each."""
        levels = np.rint(np.clip(values, 0, 1) * 255).astype(np.uint8)
        return base64.b64encode(levels.tobytes()).decode("ascii")
