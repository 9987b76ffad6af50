"""Curves of a gradient's size over the steps of a sequence."""

from typing import Any

import numpy as np

from experiments.pictures.png import save_png

# Beyond these lies nothing that an optimizer could tell from 0 or infinity.
_SMALLEST, _LARGEST = 1e-20, 1e20


def picture_paths(output: str) -> list[str]:
    """Where `save_pictures` draws."""
    return [f"{output}-{name}.png" for name in ("first-weights", "training", "pooling")]


def save_pictures(results: dict[str, Any], output: str) -> list[str]:
    """Draws `output`-first-weights.png, -training.png and -pooling.png.

    Raises:
        RunError: they can't be written.
    """
    figures = [
        _first_weights(results["first_weights"]),
        _training(results["training"]),
        _pooling(results["pooling"]),
    ]
    paths = picture_paths(output)
    for path, figure in zip(paths, figures, strict=True):
        save_png(figure, path)
    return paths


def _first_weights(by_cell: dict[str, dict[str, list[float]]]) -> Any:
    figure, axes = _panels(1, len(by_cell), "‖∂ output_T / ∂ x_t‖")
    for panel, (cell, by_scale) in zip(axes, by_cell.items(), strict=True):
        for number, (scale, norms) in enumerate(by_scale.items()):
            color = _shade(number, len(by_scale))
            panel.plot(_steps(norms), norms, color=color, label=scale)
        panel.set_title(cell, fontsize="medium")
        title = "forget bias" if "forget" in cell else "gain"
        panel.legend(title=title, fontsize="x-small", loc="upper right")
    return figure


def _training(networks: dict[str, Any]) -> Any:
    figure, axes = _panels(2, -(-len(networks) // 2), "‖∂ output_T / ∂ x_t‖")
    # Without reshaping, a cell's two networks would not stand below each other.
    by_column = axes.reshape(2, -1).T.ravel()
    for panel, (name, network) in zip(by_column, networks.items(), strict=False):
        _before_and_after(panel, network)
        panel.set_title(f"{name}: {network['accuracy']:.0%}", fontsize="medium")
    axes[0].legend(fontsize="small", frameon=False, loc="upper left")
    return figure


def _pooling(networks: dict[str, Any]) -> Any:
    figure, axes = _panels(2, -(-len(networks) // 2), "‖∂ logits / ∂ x_t‖")
    for panel, (name, network) in zip(axes, networks.items(), strict=False):
        _before_and_after(panel, network)
        panel.set_title(f"{name}: {network['accuracy']:.0%}", fontsize="medium")
    axes[0].legend(fontsize="small", frameon=False, loc="upper left")
    return figure


def _before_and_after(panel: Any, network: dict[str, Any]) -> None:
    for when, color in [("before", "tab:gray"), ("after", "tab:blue")]:
        norms = network[when]
        panel.plot(_steps(norms), norms, color=color, label=f"{when} training")


def _panels(rows: int, columns: int, label: str) -> tuple[Any, np.ndarray]:
    from matplotlib.figure import Figure

    size = (2.6 * columns + 0.6, 3.2 * rows)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for panel in axes.ravel():
        panel.set(yscale="log", ylim=(_SMALLEST, _LARGEST))
        panel.axhline(1, color="black", linewidth=0.5)
        panel.grid(alpha=0.3)
    for panel in axes[-1]:
        panel.set_xlabel("step t")
    for panel in axes[:, 0]:
        panel.set_ylabel(label)
    return figure, axes.ravel()


def _steps(norms: list[float]) -> range:
    return range(1, len(norms) + 1)


def _shade(number: int, of: int) -> Any:
    import matplotlib

    return matplotlib.colormaps["viridis"](number / of)
