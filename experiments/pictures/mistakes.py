"""The errors that were made with the most conviction."""

import numpy as np

from experiments.answers import Answers
from experiments.data.dataset import Dataset
from experiments.pictures.png import save_png

_SHOWN = 12
_COLUMNS = 6
# Inches, and the part of a column that is free on either side.
_WIDTH, _TITLE, _ROW, _GAP = 8.6, 0.38, 2.35, 0.05
_NUMBER_WIDTH = 3.0  # Of a probability as text, in bars.


def save_mistakes(answers: Answers, data: Dataset, path: str) -> None:
    """Draws the test examples answered wrongly with the largest loss, worst first.

    Under each image stand the probabilities of all classes.
    """
    from matplotlib.figure import Figure

    mistakes = answers.mistakes()
    shown = mistakes[:_SHOWN]
    grid_rows = max(1, -(-len(shown) // _COLUMNS))
    height = _TITLE + _ROW * grid_rows
    # Laid out here: of so many axes matplotlib's own layouts take as long as drawing.
    figure = Figure(figsize=(_WIDTH, height))
    total = len(answers.labels)
    which = f"The {len(shown)} worst of" if len(shown) < len(mistakes) else "All"
    errors = f"{which} {len(mistakes):,} errors" if len(mistakes) else "No errors"
    figure.suptitle(
        f"{errors} in {total:,} test examples", y=1 - 0.1 / height, va="top"
    )
    for place, index in enumerate(shown):
        image_axes = _axes(figure, place, above=0.25, high=1.2)
        bar_axes = _axes(figure, place, above=1.62, high=0.53)
        _draw_image(image_axes, answers, data, index)
        _draw_bars(bar_axes, answers, index)
    save_png(figure, path)


def _axes(figure, place, above, high):
    """Axes in cell `place`, `above` inches below its top and `high` inches high."""
    row, column = divmod(place, _COLUMNS)
    total = figure.get_figheight()
    bottom = total - _TITLE - _ROW * row - above - high
    left, width = (column + _GAP) / _COLUMNS, (1 - 2 * _GAP) / _COLUMNS
    return figure.add_axes((left, bottom / total, width, high / total))


def _draw_image(axes, answers, data, index):
    axes.imshow(data.test.images[index], cmap="gray_r", vmin=0, vmax=data.white)
    axes.set_title(
        f"{answers.labels[index]} read as {answers.answers[index]}", fontsize=10
    )
    axes.set_axis_off()
    axes.text(
        0.5, -0.02, f"test {index}", transform=axes.transAxes,
        ha="center", va="top", fontsize=7, color="gray",
    )  # fmt: skip


def _number_places(
    label: int, answer: int, left: float, right: float
) -> dict[int, float]:
    """Where the numbers over two bars are centred: apart, and inside of the axes."""
    low, high = sorted((label, answer))
    if high - low >= _NUMBER_WIDTH:
        half = _NUMBER_WIDTH / 2
        return {low: max(low, left + half), high: min(high, right - half)}
    middle = (low + high) / 2
    middle = min(max(middle, left + _NUMBER_WIDTH), right - _NUMBER_WIDTH)
    return {low: middle - _NUMBER_WIDTH / 2, high: middle + _NUMBER_WIDTH / 2}


def _draw_bars(axes, answers, index):
    probabilities = answers.probabilities[index]
    classes = np.arange(len(probabilities))
    colors = np.full(len(classes), "lightgray", dtype=object)
    label, answer = int(answers.labels[index]), int(answers.answers[index])
    colors[answer], colors[label] = "tab:orange", "tab:blue"
    axes.bar(classes, probabilities, color=colors, width=0.8)
    edges = -0.7, len(classes) - 0.3
    for c, place in _number_places(label, answer, *edges).items():
        axes.text(
            place, probabilities[c], f"{probabilities[c]:.1%}",
            ha="center", va="bottom", fontsize=6.5,
        )  # fmt: skip
    axes.set(ylim=(0, 1.15), yticks=[], xlim=edges)
    axes.set_xticks(classes, [str(c) for c in classes], fontsize=7)
    axes.tick_params(length=0, pad=1)
    axes.spines[["top", "right", "left"]].set_visible(False)
