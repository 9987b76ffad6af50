"""One image and the answer of a classifier."""

import numpy as np

from experiments.pictures.png import save_png
from experiments.prediction import Prediction


def save_prediction(shown: Prediction, path: str) -> None:
    """Draws the image beside a bar for each class's probability."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 3.2), layout="constrained")
    digit_axes, bar_axes = figure.subplots(1, 2, width_ratios=(1, 1.2))
    digit_axes.imshow(shown.image, cmap="gray", vmin=0, vmax=shown.white)
    digit_axes.set_axis_off()
    label = "" if shown.label is None else f", label {shown.label}"
    digit_axes.set_title(f"predicted {shown.answer}{label}")
    classes = np.arange(len(shown.probabilities))
    colors = ["tab:blue" if c == shown.answer else "lightgray" for c in classes]
    bar_axes.barh(classes, shown.probabilities, color=colors)
    for c, probability in enumerate(shown.probabilities):
        bar_axes.text(
            min(probability, 0.8) + 0.02, c, f"{probability:.1%}", va="center"
        )
    bar_axes.set(xlim=(0, 1), yticks=classes, xlabel="probability", ylabel="class")
    bar_axes.invert_yaxis()
    bar_axes.spines[["top", "right"]].set_visible(False)
    save_png(figure, path)
