"""Loss and accuracy over the epochs of a run, or of several."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from experiments.pictures.png import save_png

Rows = list[dict[str, Any]]
"""Of `metrics.jsonl`, one for each epoch, at least one."""

# With more, or longer names, the legend stands below, in lines of its own.
_NAMES_INSIDE, _LONG_NAME = 5, 16
_ACCURACIES = (0.1, 0.2, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.998, 0.999)
_NUMBERS = {"loss": "{:.4f}", "accuracy": "{:.2%}"}
_LOSSES = tuple(digit * 10.0**power for power in range(-6, 2) for digit in (1, 2, 5))


def save_curves(rows: Rows, path: str) -> None:
    """Draws training and test loss and accuracy, with the last values beside them.

    Args:
        rows: of the run.
        path: of the PNG.
    """
    _save({split: (split, rows) for split in ("train", "test")}, "", path)


def save_comparison(runs: Mapping[str, Rows], path: str) -> None:
    """Draws test loss and accuracy of several runs.

    Args:
        runs: the rows of each by its name.
        path: of the PNG.
    """
    _save({name: ("test", rows) for name, rows in runs.items()}, "test: ", path)


def _save(lines: Mapping[str, tuple[str, Rows]], of: str, path: str) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3), layout="constrained")
    loss_axes, accuracy_axes = figure.subplots(1, 2)
    loss_lines = _draw(loss_axes, lines, "loss")
    loss_axes.set_title(f"{of}mean loss per example")
    loss_axes.set_yscale("log")
    _tick(loss_axes, _LOSSES, "{:g}")
    accuracy_lines = _draw(accuracy_axes, lines, "accuracy")
    accuracy_axes.set_title(f"{of}accuracy")
    # A linear axis has room for the first epoch alone.
    accuracy_axes.set_yscale("logit")
    _tick(accuracy_axes, _ACCURACIES, "{:.4g} %", factor=100)
    if len(lines) <= _NAMES_INSIDE and max(map(len, lines)) <= _LONG_NAME:
        _name(loss_axes, loss_lines, lines, ["loss"])
        _name(accuracy_axes, accuracy_lines, lines, ["accuracy"])
    else:
        figure.set_figheight(3 + 0.22 * len(lines))
        below = {"loc": "outside lower left", "fontsize": "small"}
        _name(figure, loss_lines, lines, ["loss", "accuracy"], **below)
    save_png(figure, path)


def _draw(axes, lines, quantity):
    """Returns what was drawn, in the order of `lines`."""
    from matplotlib.ticker import MaxNLocator

    axes.set_prop_cycle(color=_colors(len(lines)))
    drawn = []
    for split, rows in lines.values():
        values = [row[f"{split}_{quantity}"] for row in rows]
        if quantity == "accuracy":
            # All right, or all wrong, is infinitely far on a logit axis: drawn half an
            # example short of it.
            halves = [0.5 / row[f"{split}_examples"] for row in rows]
            values = [
                min(max(value, half), 1 - half)
                for value, half in zip(values, halves, strict=True)
            ]
        drawn += axes.plot([row["epoch"] for row in rows], values, marker="o", ms=2)
    axes.set_xlabel("epoch")
    whole = MaxNLocator(integer=True, steps=[1, 2, 5, 10], min_n_ticks=1)
    axes.xaxis.set_major_locator(whole)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    return drawn


def _colors(count):
    import matplotlib

    told_apart = matplotlib.colormaps["tab10"].colors
    if count <= len(told_apart):
        return told_apart
    return matplotlib.colormaps["turbo"](np.linspace(0.05, 0.95, count))


def _name(place, drawn, lines, quantities, **options):
    """Adds a legend to `place`, axes or a figure: names, with their last values."""
    last_epochs = {rows[-1]["epoch"] for _, rows in lines.values()}
    labels = []
    for name, (split, rows) in lines.items():
        last = rows[-1]
        values = [_NUMBERS[kind].format(last[f"{split}_{kind}"]) for kind in quantities]
        after = f" after {last['epoch']}" if len(last_epochs) > 1 else ""
        labels.append(f"{name}  {', '.join(values)}{after}")
    title = f"after epoch {last_epochs.pop()}" if len(last_epochs) == 1 else None
    # Given here, since matplotlib leaves out lines with a label like "_old".
    legend = place.legend(drawn, labels, frameon=False, title=title, **options)
    for text in legend.get_texts():
        text.set_parse_math(False)  # A dollar in a folder's name is just that.


def _told_apart(limits):
    """Both limits, rounded to as few digits as tell them apart."""
    for digits in range(2, 7):
        shown = [float(f"{limit:.{digits}g}") for limit in limits]
        if shown[0] < shown[1]:
            break
    return shown


def _tick(axes, values, text, factor=1):
    from matplotlib.ticker import NullLocator

    limits = axes.get_ylim()
    shown = [value for value in values if limits[0] <= value <= limits[1]]
    if len(shown) < 2:  # One epoch, or a loss that hardly moves.
        shown = _told_apart(limits)
    axes.set_yticks(shown, [text.format(value * factor) for value in shown])
    axes.yaxis.set_minor_locator(NullLocator())
