"""Reading every made-up drawing, and counting."""

import dataclasses

import numpy as np

from experiments.drawings.styles import Drawing, draw_all
from experiments.images import to_form
from experiments.pictures.png import save_png
from experiments.restored import RestoredClassifier

_COLUMNS = 12
_DRAWN_MISTAKES = 60


@dataclasses.dataclass(frozen=True)
class Scored:
    """N `drawings`, `forms` (N, side, side) as the model sees them, `answers` (N,)."""

    drawings: list[Drawing]
    forms: np.ndarray
    answers: np.ndarray

    @property
    def right(self) -> np.ndarray:
        """(N,) bool."""
        return self.answers == [drawing.label for drawing in self.drawings]

    def text(self) -> str:
        """Right and total by style and by digit, what is wrong, and the sum."""
        lines = [
            *self._by("style", [drawing.style for drawing in self.drawings]),
            *self._by("digit", [str(drawing.label) for drawing in self.drawings]),
            *(
                f"  wrong: {drawing.label}, {drawing.shape}, {drawing.style}: {answer}"
                for drawing, answer, right in zip(
                    self.drawings, self.answers, self.right, strict=True
                )
                if not right
            ),
            f"All: {_share(self.right)}",
        ]
        return "\n".join(lines)

    def _by(self, kind: str, names: list[str]) -> list[str]:
        return [
            f"  {kind} {name}: {_share(self.right[np.array(names) == name])}"
            for name in dict.fromkeys(names)
        ]

    def save_mistakes(self, path: str) -> None:
        """Draws wrongly read drawings, the first ones, over what the model saw."""
        from matplotlib.figure import Figure

        wrong = np.flatnonzero(~self.right)
        shown = wrong[:_DRAWN_MISTAKES]
        lines = max(1, -(-len(shown) // _COLUMNS))
        figure = Figure(figsize=(_COLUMNS, 2.4 * lines), layout="constrained")
        cells = figure.subplots(2 * lines, _COLUMNS, squeeze=False)
        if len(shown) < len(wrong):
            figure.suptitle(f"The first {len(shown)} of {len(wrong):,} errors")
        for axes in cells.flat:
            axes.set_axis_off()
        for place, index in enumerate(shown):
            line, column = divmod(place, _COLUMNS)
            drawing = self.drawings[index]
            above, below = cells[2 * line : 2 * line + 2, column]
            above.imshow(drawing.grey, cmap="gray", vmin=0, vmax=255)
            above.set_title(f"{drawing.label} as {self.answers[index]}", fontsize=9)
            below.imshow(self.forms[index], cmap="gray_r")
        save_png(figure, path)


def score(classifier: RestoredClassifier, hands: int) -> Scored:
    """Brings the drawings of `hands` hands to the model's form, and reads them."""
    drawings = draw_all(hands)
    form = classifier.form
    forms = np.stack(
        [to_form(d.grey, form, f"the {d.shape} {d.label}") for d in drawings]
    )
    inputs = classifier.model_input.of_pixels(forms)
    logits = classifier.model.apply(classifier.variables, inputs)
    return Scored(drawings, forms, np.asarray(logits).argmax(-1))


def _share(right: np.ndarray) -> str:
    return f"{right.sum()} of {len(right)} ({right.mean():.1%})"
