"""Writing a figure: whole or not at all."""

import contextlib
import os
from typing import TYPE_CHECKING

from experiments.errors import RunError

if TYPE_CHECKING:  # matplotlib takes a second to import: where something is drawn.
    from matplotlib.figure import Figure

_DPI = 150


def save_png(figure: "Figure", path: str) -> None:
    """Writes `figure` to `path`, which holds the old picture until the new is whole.

    Raises:
        RunError: it can't be written.
    """
    temporary = f"{path}.tmp"
    try:
        figure.savefig(temporary, dpi=_DPI, format="png")
        os.replace(temporary, path)
    except OSError as error:
        raise RunError(f"can't write the picture {path}: {error.strerror}") from error
    finally:
        with contextlib.suppress(OSError):
            os.remove(temporary)
