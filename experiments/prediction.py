"""The answer of a classifier for one image, as text and as a picture."""

import dataclasses
from typing import Any

import jax
import numpy as np

from experiments.model_input import ModelInput
from experiments.pictures.png import save_png
from flax_lstm import SequenceClassifier


@dataclasses.dataclass(frozen=True)
class Prediction:
    """`image` (rows, columns) uint8, `logits` and `probabilities` (num_classes,)."""

    image: np.ndarray
    white: int
    logits: np.ndarray
    probabilities: np.ndarray
    label: int | None

    @property
    def answer(self) -> int:
        return int(np.argmax(self.logits))

    def text(self) -> str:
        """Label (if known), prediction, and every class with its probability."""
        label = "" if self.label is None else f"Label: {self.label}\n"
        rows = "\n".join(
            f"  {digit}: {probability:8.4%}  (logit {logit:+.3f})"
            for digit, (probability, logit) in enumerate(
                zip(self.probabilities, self.logits, strict=True)
            )
        )
        return f"{label}Prediction: {self.answer}\n{rows}"

    def save_figure(self, path: str) -> None:
        """The image beside a bar for each class's probability, as a PNG."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(6.4, 3.2), layout="constrained")
        digit_axes, bar_axes = figure.subplots(1, 2, width_ratios=(1, 1.2))
        digit_axes.imshow(self.image, cmap="gray", vmin=0, vmax=self.white)
        digit_axes.set_axis_off()
        label = "" if self.label is None else f", label {self.label}"
        digit_axes.set_title(f"predicted {self.answer}{label}")
        classes = np.arange(len(self.probabilities))
        colors = ["tab:blue" if c == self.answer else "lightgray" for c in classes]
        bar_axes.barh(classes, self.probabilities, color=colors)
        for c, probability in enumerate(self.probabilities):
            bar_axes.text(
                min(probability, 0.8) + 0.02, c, f"{probability:.1%}", va="center"
            )
        bar_axes.set(xlim=(0, 1), yticks=classes, xlabel="probability", ylabel="class")
        bar_axes.invert_yaxis()
        bar_axes.spines[["top", "right"]].set_visible(False)
        save_png(figure, path)


def predict(
    model: SequenceClassifier,
    variables: Any,
    image: np.ndarray,
    model_input: ModelInput,
    label: int | None = None,
) -> Prediction:
    """The prediction for one image in the form of the model's dataset."""
    logits = model.apply(variables, model_input.of_pixels(image[None]))[0]
    return Prediction(
        image=image,
        white=model_input.white,
        logits=np.asarray(logits),
        probabilities=np.asarray(jax.nn.softmax(logits)),
        label=label,
    )
