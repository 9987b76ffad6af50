"""The errors that were made with the most conviction."""

import numpy as np

from experiments.answers import Answers
from experiments.data.dataset import Dataset
from experiments.pictures.png import save_png

_SHOWN = 12
_COLUMNS = 6


def save_mistakes(answers: Answers, data: Dataset, path: str) -> None:
    """Draws the test examples answered wrongly with the largest loss, worst first.

    Under each image stand the probabilities of all classes.
    """
    from matplotlib.figure import Figure

    mistakes = answers.mistakes()
    shown = mistakes[:_SHOWN]
    grid_rows = max(1, -(-len(shown) // _COLUMNS))
    figure = Figure(figsize=(8.6, 0.45 + 2.35 * grid_rows), layout="constrained")
    total = len(answers.labels)
    which = f"The {len(shown)} worst of" if len(shown) < len(mistakes) else "All"
    errors = f"{which} {len(mistakes):,} errors" if len(mistakes) else "No errors"
    figure.suptitle(f"{errors} in {total:,} test examples")
    cells = figure.subplots(
        2 * grid_rows, _COLUMNS, height_ratios=[2.2, 1] * grid_rows, squeeze=False
    )
    for axes in cells.flat:
        axes.set_axis_off()
    for place, index in enumerate(shown):
        row, column = divmod(place, _COLUMNS)
        image_axes, bar_axes = cells[2 * row : 2 * row + 2, column]
        _draw_image(image_axes, answers, data, index)
        _draw_bars(bar_axes, answers, index)
    save_png(figure, path)


def _draw_image(axes, answers, data, index):
    axes.imshow(data.test.images[index], cmap="gray_r", vmin=0, vmax=data.white)
    axes.set_title(
        f"{answers.labels[index]} read as {answers.answers[index]}", fontsize=10
    )
    axes.text(
        0.5, -0.02, f"test {index}", transform=axes.transAxes,
        ha="center", va="top", fontsize=7, color="gray",
    )  # fmt: skip


def _draw_bars(axes, answers, index):
    probabilities = answers.probabilities[index]
    classes = np.arange(len(probabilities))
    colors = np.full(len(classes), "lightgray", dtype=object)
    label, answer = int(answers.labels[index]), int(answers.answers[index])
    colors[answer], colors[label] = "tab:orange", "tab:blue"
    axes.set_axis_on()
    axes.bar(classes, probabilities, color=colors, width=0.8)
    # Of neighbours, the lower bar's number keeps away from the higher bar.
    beside = {1: "left", -1: "right"}.get(label - answer, "center")
    for c, alignment in ((label, beside), (answer, "center")):
        axes.text(
            c, probabilities[c], f"{probabilities[c]:.1%}",
            ha=alignment, va="bottom", fontsize=6.5,
        )  # fmt: skip
    axes.set(ylim=(0, 1.15), yticks=[], xlim=(-0.7, len(classes) - 0.3))
    axes.set_xticks(classes, [str(c) for c in classes], fontsize=7)
    axes.tick_params(length=0, pad=1)
    axes.spines[["top", "right", "left"]].set_visible(False)
