"""The ways in which people write the ten digits, as strokes."""

import dataclasses

import numpy as np
from scipy.interpolate import make_interp_spline

_POINTS_A_STROKE = 80


@dataclasses.dataclass(frozen=True)
class Stroke:
    """A curve through `points` (N, 2), (x, y) with y down, of a digit of height 1.

    With `smooth` it is a cubic through them, else straight from one to the next.
    """

    points: np.ndarray
    smooth: bool

    def path(self) -> np.ndarray:
        """Points close enough to be joined by straight lines, (M, 2)."""
        if not self.smooth or len(self.points) < 3:
            return self.points
        steps = np.linalg.norm(np.diff(self.points, axis=0), axis=1)
        along = np.concatenate([[0.0], np.cumsum(steps)])
        curve = make_interp_spline(along, self.points, k=min(3, len(steps)))
        return curve(np.linspace(0, along[-1], _POINTS_A_STROKE))


def _curve(*points: tuple[float, float]) -> Stroke:
    return Stroke(np.array(points), smooth=True)


def _lines(*points: tuple[float, float]) -> Stroke:
    return Stroke(np.array(points), smooth=False)


def _oval(x, y, width, height, start=-90.0, sweep=360.0) -> Stroke:
    """Around (x, y), counterclockwise from `start` degrees (0 is right, 90 is down)."""
    angles = np.radians(np.linspace(start, start - sweep, 12))
    points = np.stack(
        [x + width / 2 * np.cos(angles), y + height / 2 * np.sin(angles)], axis=1
    )
    return Stroke(points, smooth=True)


# fmt: off
SHAPES: dict[int, dict[str, list[Stroke]]] = {
    0: {
        "oval": [_oval(0.32, 0.5, 0.62, 1.0)],
        "round": [_oval(0.42, 0.5, 0.86, 1.0, start=-60)],
        "overshooting": [_oval(0.3, 0.5, 0.56, 1.0, start=-70, sweep=395)],
    },
    1: {
        "bar": [_lines((0.1, 0.0), (0.1, 1.0))],
        "with a flag": [_lines((0.0, 0.26), (0.26, 0.0), (0.26, 1.0))],
        "with flag and foot": [
            _lines((0.06, 0.22), (0.3, 0.0), (0.3, 1.0)),
            _lines((0.06, 1.0), (0.54, 1.0)),
        ],
    },
    2: {
        "straight foot": [
            _curve((0.03, 0.26), (0.12, 0.08), (0.33, 0.0), (0.54, 0.09), (0.58, 0.28),
                   (0.46, 0.5), (0.24, 0.76), (0.0, 0.99)),
            _lines((0.0, 0.99), (0.64, 0.99)),
        ],
        "looped foot": [
            _curve((0.06, 0.2), (0.2, 0.03), (0.42, 0.02), (0.55, 0.18), (0.5, 0.42),
                   (0.32, 0.72), (0.12, 0.93), (0.03, 0.86), (0.14, 0.77), (0.34, 0.86),
                   (0.5, 0.97), (0.68, 0.93)),
        ],
        "like a swan": [
            _curve((0.0, 0.2), (0.22, 0.0), (0.48, 0.1), (0.5, 0.36), (0.3, 0.68),
                   (0.04, 0.96)),
            _curve((0.04, 0.96), (0.24, 0.88), (0.42, 0.97), (0.66, 0.92)),
        ],
    },
    3: {
        "two bowls": [
            _curve((0.04, 0.12), (0.28, 0.0), (0.52, 0.1), (0.52, 0.34), (0.22, 0.46)),
            _curve((0.22, 0.46), (0.54, 0.56), (0.6, 0.8), (0.32, 1.0), (0.0, 0.88)),
        ],
        "flat top": [
            _lines((0.04, 0.0), (0.56, 0.0), (0.24, 0.4)),
            _curve((0.24, 0.4), (0.54, 0.48), (0.62, 0.74), (0.38, 0.98), (0.0, 0.9)),
        ],
        "looped middle": [
            _curve((0.05, 0.15), (0.25, 0.0), (0.5, 0.08), (0.5, 0.3), (0.32, 0.46),
                   (0.2, 0.5), (0.3, 0.42), (0.5, 0.52), (0.58, 0.76), (0.34, 1.0),
                   (0.02, 0.9)),
        ],
    },
    4: {
        "open": [
            _lines((0.14, 0.0), (0.02, 0.56), (0.66, 0.56)),
            _lines((0.5, 0.06), (0.46, 1.0)),
        ],
        "closed": [_lines((0.48, 1.0), (0.48, 0.0), (0.0, 0.66), (0.68, 0.66))],
        "rounded": [
            _curve((0.1, 0.02), (0.05, 0.3), (0.08, 0.5), (0.28, 0.54), (0.56, 0.48)),
            _lines((0.58, 0.0), (0.52, 1.0)),
        ],
    },
    5: {
        "with a roof": [
            _lines((0.12, 0.02), (0.08, 0.42)),
            _curve((0.08, 0.42), (0.32, 0.36), (0.56, 0.52), (0.56, 0.8), (0.32, 1.0),
                   (0.0, 0.9)),
            _lines((0.12, 0.02), (0.6, 0.0)),
        ],
        "one stroke": [
            _lines((0.6, 0.0), (0.14, 0.02), (0.08, 0.46)),
            _curve((0.08, 0.46), (0.36, 0.4), (0.58, 0.58), (0.5, 0.88), (0.24, 1.0),
                   (0.0, 0.92)),
        ],
        "like an S": [
            _curve((0.6, 0.02), (0.3, 0.02), (0.12, 0.1), (0.1, 0.34), (0.34, 0.44),
                   (0.54, 0.62), (0.46, 0.9), (0.2, 1.0), (0.0, 0.9)),
        ],
    },
    6: {
        "curled": [
            _curve((0.46, 0.0), (0.22, 0.16), (0.05, 0.46), (0.03, 0.78), (0.22, 1.0),
                   (0.48, 0.92), (0.52, 0.68), (0.34, 0.54), (0.1, 0.66)),
        ],
        "straight stem": [
            _curve((0.3, 0.0), (0.12, 0.4), (0.02, 0.74), (0.18, 0.99), (0.44, 0.94),
                   (0.5, 0.74), (0.32, 0.6), (0.04, 0.74)),
        ],
        "large bowl": [
            _curve((0.54, 0.06), (0.34, 0.0), (0.12, 0.2), (0.0, 0.56), (0.1, 0.92),
                   (0.38, 1.0), (0.6, 0.82), (0.54, 0.54), (0.3, 0.46), (0.06, 0.64)),
        ],
    },
    7: {
        "plain": [_lines((0.0, 0.02), (0.58, 0.0), (0.2, 1.0))],
        "crossed": [
            _lines((0.0, 0.02), (0.6, 0.0), (0.24, 1.0)),
            _lines((0.14, 0.52), (0.58, 0.48)),
        ],
        "curved stem": [
            _lines((0.02, 0.14), (0.04, 0.0), (0.6, 0.02)),
            _curve((0.6, 0.02), (0.42, 0.34), (0.3, 0.66), (0.26, 1.0)),
        ],
    },
    8: {
        "one stroke": [
            _curve((0.5, 0.12), (0.28, 0.0), (0.08, 0.14), (0.14, 0.36), (0.36, 0.52),
                   (0.54, 0.74), (0.44, 0.96), (0.2, 0.99), (0.04, 0.8), (0.14, 0.6),
                   (0.4, 0.4), (0.54, 0.22), (0.5, 0.12)),
        ],
        "two rounds": [
            _oval(0.3, 0.23, 0.44, 0.46), _oval(0.3, 0.73, 0.56, 0.54),
        ],
        "slender": [
            _curve((0.4, 0.06), (0.22, 0.0), (0.1, 0.14), (0.14, 0.34), (0.3, 0.52),
                   (0.42, 0.74), (0.34, 0.96), (0.16, 1.0), (0.06, 0.84), (0.14, 0.64),
                   (0.32, 0.46), (0.44, 0.22), (0.4, 0.06)),
        ],
    },
    9: {
        "straight stem": [
            _oval(0.28, 0.28, 0.52, 0.54, start=-20),
            _lines((0.54, 0.1), (0.46, 1.0)),
        ],
        "one stroke": [
            _curve((0.52, 0.16), (0.32, 0.0), (0.08, 0.12), (0.06, 0.38), (0.28, 0.5),
                   (0.48, 0.36), (0.54, 0.12)),
            _curve((0.54, 0.12), (0.5, 0.5), (0.4, 1.0)),
        ],
        "curved tail": [
            _oval(0.3, 0.26, 0.52, 0.5, start=-10),
            _curve((0.56, 0.2), (0.56, 0.56), (0.46, 0.88), (0.24, 1.0), (0.04, 0.92)),
        ],
    },
}
# fmt: on
"""For each digit, the strokes of every shape by its name."""
