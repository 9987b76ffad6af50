"""Writing a figure: whole or not at all."""

from typing import TYPE_CHECKING

from experiments.whole_file import replacing

if TYPE_CHECKING:  # matplotlib takes a second to import: only done to draw.
    from matplotlib.figure import Figure

_DPI = 150


def save_png(figure: "Figure", path: str) -> None:
    """Writes `figure` to `path`, which holds the old picture until the new is complete.

    Raises:
        RunError: it can't be written.
    """
    with replacing(path) as (temporary,):
        figure.savefig(temporary, dpi=_DPI, format="png")
