"""Inside the gates: how each row of one digit moves a layer's units."""

import numpy as np

from experiments.pictures.png import save_png
from experiments.prediction import Prediction
from experiments.reading import Reading

_NAMES = {
    "i": "input gate",
    "f": "forget gate",
    "o": "output gate",
    "c": "cell state",
}


def save_gates(reading: Reading, shown: Prediction, path: str) -> None:
    """Draws rows from top to bottom, as they are read, in every panel.

    Beside the image stand the probabilities after each row; below, a line of panels
    for each layer: its gates and cell state, a column for each unit. The units of a
    layer are in the order of the row where their cell state is largest.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    layers = len(reading.layers)
    figure = Figure(figsize=(11, 2.9 + 2.3 * layers), layout="constrained")
    heights = (2.9, 2.3 * layers)
    parts = figure.subfigures(2, 1, squeeze=False, height_ratios=heights)
    top, below = parts[:, 0]
    _draw_answers(top, reading, shown)
    grid = below.subplots(layers, len(_NAMES), squeeze=False, sharey=True)
    # A few units that count far would leave all others pale.
    states = np.concatenate([layer.c.ravel() for layer in reading.layers])
    limit = float(np.percentile(np.abs(states), 99)) or 1.0
    for line, layer in zip(grid, reading.layers, strict=True):
        order = layer.units_by_peak()
        for axes, (name, title) in zip(line, _NAMES.items(), strict=True):
            gate = name != "c"
            painted = axes.imshow(
                getattr(layer, name)[:, order],
                aspect="auto",
                interpolation="nearest",
                cmap="viridis" if gate else "RdBu_r",
                vmin=0 if gate else -limit,
                vmax=1 if gate else limit,
            )
            axes.set_title(f"{layer.name}: {title}", fontsize=10)
            axes.set_xlabel("unit, sorted", fontsize=8)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
            axes.tick_params(labelsize=8)
            if name in "oc":
                extend = "neither" if gate else "both"
                bar = figure.colorbar(painted, ax=axes, pad=0.02, extend=extend)
                bar.ax.tick_params(labelsize=7)
        line[0].set_ylabel("row", fontsize=8)
    save_png(figure, path)


def _draw_answers(figure, reading, shown):
    rows, classes = reading.probabilities.shape
    image_axes, map_axes, line_axes = figure.subplots(1, 3, width_ratios=(1, 1, 2))
    image_axes.imshow(shown.image, cmap="gray_r", vmin=0, vmax=shown.white)
    label = "" if shown.label is None else f", label {shown.label}"
    image_axes.set_title(f"read as {reading.answer}{label}")
    image_axes.set(xticks=[], ylabel="row")
    map_axes.imshow(
        reading.probabilities,
        aspect="auto",
        interpolation="nearest",
        cmap="Blues",
        vmin=0,
        vmax=1,
    )
    map_axes.set_title("probability of each class")
    map_axes.set(xticks=range(classes), xlabel="class", yticks=[])
    read_rows = np.arange(rows)
    # Only classes that were likely at some row are labelled.
    for c in range(classes):
        believed = reading.probabilities[:, c]
        seen = believed.max() >= 0.2
        line_axes.plot(
            read_rows,
            believed,
            color=f"C{c}" if seen else "lightgray",
            lw=2 if seen else 1,
            zorder=2 if seen else 1,
        )
        if seen:
            peak = int(believed.argmax())
            line_axes.annotate(
                str(c),
                (peak, believed[peak]),
                xytext=(0, 4),
                textcoords="offset points",
                color=f"C{c}",
                weight="bold",
                ha="center",
            )
    line_axes.set(xlabel="row", ylim=(0, 1.12), xlim=(0, rows - 1))
    line_axes.set_title("probabilities after each row")
    line_axes.spines[["top", "right"]].set_visible(False)
