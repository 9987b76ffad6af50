"""The growth of a training step's cost with each size, as a picture."""

import math

from experiments.benchmark.report import Comparison
from experiments.pictures.png import save_png


def save_growth(growth: dict[str, list[Comparison]], sizes, path: str) -> None:
    """Draws a panel for each size that grows, a line for each contender.

    Args:
        growth: axis label to its comparisons, in the order of `sizes`.
        sizes: axis label to the sizes.
        path: of the PNG.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullLocator, ScalarFormatter

    figure = Figure(figsize=(11, 3.2), layout="constrained")
    all_axes = figure.subplots(1, len(growth), sharey=True, squeeze=False)[0]
    for axes, (label, comparisons) in zip(all_axes, growth.items(), strict=True):
        for name in comparisons[0].values:
            # Not every contender supports all sizes; a gap then.
            milliseconds = [c.values.get(name, math.nan) for c in comparisons]
            axes.plot(sizes[label], milliseconds, marker="o", ms=3, label=name)
        axes.set(xscale="log", yscale="log", xlabel=label)
        axes.set_xticks(sizes[label])
        axes.xaxis.set_major_formatter(ScalarFormatter())
        axes.xaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(ScalarFormatter())
        axes.grid(alpha=0.3)
    all_axes[0].set_ylabel("training step, ms")
    all_axes[0].legend(fontsize="small", frameon=False)
    save_png(figure, path)
