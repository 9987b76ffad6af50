"""From a grey picture to how much of each pixel is ink.

A shadow is wider than a pen. So the paper under a dark stroke is what a grey closing
leaves of the picture: dark things narrower than its window are filled up, edges of
wide ones stay where they are. Under a light stroke it is a grey opening.
"""

import numpy as np
from scipy import ndimage

_WIDEST_WINDOW = 0.4  # Of the longer side: wider than any pen.
_WINDOW_IN_PENS = 3  # Where strokes cross, they are wider than the pen.
_LEAST_WINDOW = 5
_PEAK = 99.8  # Percentile: the rest is less than a small digit covers.
_PLATEAU = 1.2  # Growth by less than this factor counts as none.
_CLEAR = 0.1  # Dark or light is clear if the other is less than this share of it.
_GRAINY_SIDE = 200  # Pixels; smaller pictures have no camera's noise.
LEAST_CONTRAST = 16  # Of 255; less than that is paper and noise.
_EDGE = 0.1  # A pixel belongs to the digit from this share of full ink on.
# Of the heaviest part of the drawing; lighter parts are dirt.
_SPECK, _RIM_SPECK = 0.03, 0.1


def find_ink(grey: np.ndarray) -> np.ndarray | None:
    """Ink in [0, 1] of each pixel of `grey` (rows, columns) uint8, dirt left out.

    Whether ink is dark or light is read off the rim, which is paper. None if there is
    no contrast to speak of.
    """
    smooth = grey.astype(np.float32)
    if max(grey.shape) >= _GRAINY_SIDE:
        smooth = ndimage.gaussian_filter(smooth, 1)
    dark = _is_dark(smooth)
    ink = _ink(smooth, dark, _first_window(smooth, dark))
    if ink is not None:
        ink = _ink(smooth, dark, round(_WINDOW_IN_PENS * pen_width(ink)))
    return None if ink is None else _without_specks(ink)


def pen_width(ink: np.ndarray) -> float:
    """Width of a typical stroke in pixels."""
    # Padded, since the distance is that to the nearest pixel without ink.
    depth = ndimage.distance_transform_edt(np.pad(ink > 0.5, 1))
    ridge = (depth > 0) & (depth == ndimage.maximum_filter(depth, size=3))
    # The middle of a stroke of one pixel has the depth 1.
    return float(2 * np.median(depth[ridge]) - 1) if ridge.any() else 1.0


def thickened(ink: np.ndarray, margin: float) -> np.ndarray:
    """`ink`, each stroke wider by `margin` pixels on either side, on a larger sheet."""
    padded = np.pad(ink, int(np.ceil(margin)) + 1)
    distance = ndimage.distance_transform_edt(padded <= 0.5)
    # The first pixel beside a stroke has the distance 1.
    return np.maximum(padded, np.clip(margin + 1 - distance, 0, 1))


def otsu(values: np.ndarray) -> float:
    """The threshold that splits `values` into two groups that vary least inside.

    Source: Otsu 1979, https://doi.org/10.1109/TSMC.1979.4310076
    """
    counts, edges = np.histogram(values, bins=256)
    middles = (edges[:-1] + edges[1:]) / 2
    below = np.cumsum(counts)[:-1]
    above = below[-1] + counts[-1] - below
    sums = np.cumsum(counts * middles)
    mean_below = sums[:-1] / np.maximum(below, 1)
    mean_above = (sums[-1] - sums[:-1]) / np.maximum(above, 1)
    between = below * above * (mean_above - mean_below) ** 2
    # In an empty stretch between the groups all are equally good: its middle.
    best = np.flatnonzero(between == between.max())
    return float(edges[1 + best].mean())


def _is_dark(grey: np.ndarray) -> bool:
    """Whether the picture's greys go farther below those of its rim than above them.

    If they go both ways, the lighting is uneven: then the ink is what is narrower.
    """
    rim = np.concatenate([grey[0], grey[-1], grey[:, 0], grey[:, -1]])
    lowest, highest = np.percentile(rim, (5, 95))
    below, above = max(lowest - grey.min(), 0), max(grey.max() - highest, 0)
    if min(below, above) < _CLEAR * max(below, above):
        return bool(below > above)
    windows = {dark: _first_window(grey, dark) for dark in (True, False)}
    if windows[True] != windows[False]:
        return windows[True] < windows[False]
    return _peak(grey, True, windows[True]) > _peak(grey, False, windows[False])


def _first_window(grey: np.ndarray, dark: bool) -> int:
    """A window somewhat wider than the pen: one that shows hardly more than half of it.

    The widest shows shadows, too, and they may be darker than ink.
    """
    widest = max(_LEAST_WINDOW, round(_WIDEST_WINDOW * max(grey.shape)))
    half = _peak(grey, dark, widest) / 2
    window, shown_before = _LEAST_WINDOW, 0
    while True:
        shown = int(np.count_nonzero(_contrast(grey, dark, window) > half))
        if window == widest or 0 < shown < _PLATEAU * shown_before:
            return window
        window, shown_before = min(2 * window, widest), shown


def _peak(grey: np.ndarray, dark: bool, window: int) -> float:
    return float(np.percentile(_contrast(grey, dark, window), _PEAK))


def _ink(grey: np.ndarray, dark: bool, window: int) -> np.ndarray | None:
    contrast = _contrast(grey, dark, max(_LEAST_WINDOW, window))
    if contrast.max() < LEAST_CONTRAST:
        return None
    threshold = otsu(contrast)
    marked = contrast > threshold
    full = np.percentile(contrast[marked], 90)
    # The paper's own contrast: a closing follows the brightest grains.
    grain = np.percentile(contrast[~marked], 90)
    return np.clip((contrast - grain) / (full - grain), 0, 1)


def _contrast(grey: np.ndarray, dark: bool, window: int) -> np.ndarray:
    """How far each pixel is from its paper, of 255, as if all paper were lit alike."""
    size = (window, window)
    if not dark:
        return grey - ndimage.grey_opening(grey, size)
    paper = ndimage.grey_closing(grey, size)
    # In the shadow a stroke is darker in the same proportion as its paper.
    return 255 * (paper - grey) / np.maximum(paper, 1)


def _without_specks(ink: np.ndarray) -> np.ndarray:
    """Keeps the parts that are heavy and dark; at the rim, shadows leave corners."""
    parts, count = ndimage.label(ink > _EDGE, structure=np.ones((3, 3)))
    numbers = np.arange(1, count + 1)
    weights = ndimage.sum_labels(ink, parts, numbers)
    rim = np.concatenate([parts[0], parts[-1], parts[:, 0], parts[:, -1]])
    least = np.where(np.isin(numbers, rim), _RIM_SPECK, _SPECK) * weights.max()
    strong = ndimage.maximum(ink, parts, numbers) > 0.5
    kept = np.concatenate([[False], strong & (weights >= least)])
    return np.where(kept[parts], ink, 0)
