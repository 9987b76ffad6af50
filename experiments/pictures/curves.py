"""Loss and accuracy over the epochs of a run."""

from typing import Any

from experiments.pictures.png import save_png

_COLORS = {"train": "tab:blue", "test": "tab:orange"}
_ACCURACIES = (0.1, 0.2, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.998, 0.999)
_LOSSES = tuple(digit * 10.0**power for power in range(-6, 2) for digit in (1, 2, 5))


def save_curves(rows: list[dict[str, Any]], path: str) -> None:
    """Draws training and test loss and accuracy, with the last values beside them.

    Args:
        rows: of `metrics.jsonl`, one for each epoch, at least one.
        path: of the PNG.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3), layout="constrained")
    loss_axes, accuracy_axes = figure.subplots(1, 2)
    _draw(loss_axes, rows, "loss", "{:.4f}")
    loss_axes.set_title("mean loss per example")
    loss_axes.set_yscale("log")
    _tick(loss_axes, _LOSSES, "{:g}")
    _draw(accuracy_axes, rows, "accuracy", "{:.2%}")
    accuracy_axes.set_title("accuracy")
    # A linear axis has room for the first epoch alone.
    accuracy_axes.set_yscale("logit")
    _tick(accuracy_axes, _ACCURACIES, "{:.4g} %", factor=100)
    save_png(figure, path)


def _draw(axes, rows, quantity, number):
    from matplotlib.ticker import MaxNLocator

    epochs = [row["epoch"] for row in rows]
    for split, color in _COLORS.items():
        values = [row[f"{split}_{quantity}"] for row in rows]
        label = f"{split}  {number.format(values[-1])}"
        if quantity == "accuracy":
            # All right, or all wrong, is infinitely far on a logit axis: half an
            # example short of it.
            halves = [0.5 / row[f"{split}_examples"] for row in rows]
            values = [
                min(max(value, half), 1 - half)
                for value, half in zip(values, halves, strict=True)
            ]
        axes.plot(epochs, values, color=color, marker="o", ms=2, label=label)
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, title=f"after epoch {epochs[-1]}")


def _tick(axes, values, text, factor=1):
    from matplotlib.ticker import NullLocator

    limits = axes.get_ylim()
    shown = [value for value in values if limits[0] <= value <= limits[1]]
    if len(shown) < 2:  # One epoch, or a loss that hardly moves.
        shown = [float(f"{limit:.2g}") for limit in limits]
    axes.set_yticks(shown, [text.format(value * factor) for value in shown])
    axes.yaxis.set_minor_locator(NullLocator())
