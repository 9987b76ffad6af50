"""Which digits are taken for which."""

import numpy as np

from experiments.answers import Answers
from experiments.pictures.png import save_png


def counts_of(answers: Answers, num_classes: int) -> np.ndarray:
    """(num_classes, num_classes) counts: a row for each label, a column an answer."""
    counts = np.zeros((num_classes, num_classes), int)
    np.add.at(counts, (answers.labels, answers.answers), 1)
    return counts


def save_confusion(answers: Answers, path: str) -> None:
    """Draws the counts; only errors are coloured, or the hits would drown them."""
    from matplotlib.figure import Figure

    classes = np.arange(answers.probabilities.shape[1])
    counts = counts_of(answers, len(classes))
    errors = counts * (1 - np.eye(len(classes), dtype=int))
    most = max(1, errors.max())

    figure = Figure(figsize=(5.2, 5.2), layout="constrained")
    axes = figure.subplots()
    axes.imshow(np.ma.masked_equal(errors, 0), cmap="Oranges", vmin=0, vmax=1.4 * most)
    for label, answer in np.ndindex(counts.shape):
        count = counts[label, answer]
        if count:
            hit = label == answer
            color = "gray" if hit else "black"
            weight = "normal" if hit else "bold"
            axes.text(
                answer, label, f"{count}", ha="center", va="center",
                color=color, weight=weight, fontsize=9 if hit else 10,
            )  # fmt: skip
    total = len(answers.labels)
    axes.set_title(f"{errors.sum():,} errors in {total:,} test examples", pad=10)
    axes.set(xlabel="answer", ylabel="label", xticks=classes, yticks=classes)
    axes.set_xticks(classes[1:] - 0.5, minor=True)
    axes.set_yticks(classes[1:] - 0.5, minor=True)
    axes.grid(which="minor", color="0.9")
    axes.tick_params(which="both", length=0)
    axes.spines[:].set_visible(False)
    save_png(figure, path)
