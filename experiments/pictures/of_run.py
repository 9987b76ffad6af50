"""The pictures that every run leaves in its workdir."""

from experiments import metrics
from experiments.answers import Answers
from experiments.data.dataset import Dataset
from experiments.pictures.confusion import save_confusion
from experiments.pictures.curves import save_curves
from experiments.pictures.mistakes import save_mistakes
from experiments.restored import RestoredClassifier


def draw_run(
    classifier: RestoredClassifier, data: Dataset, answers: Answers
) -> list[str]:
    """Draws curves, confusion and mistakes of a run; the paths of what was drawn.

    `answers` are the classifier's to the test examples of `data`.

    Without any row in `metrics.jsonl` (someone took it away) there are no curves.
    """
    drawn = []
    if rows := metrics.rows(classifier.workdir):
        drawn.append(classifier.picture_path("curves"))
        save_curves(rows, drawn[-1])
    drawn.append(classifier.picture_path("confusion"))
    save_confusion(answers, drawn[-1])
    drawn.append(classifier.picture_path("mistakes"))
    save_mistakes(answers, data, drawn[-1])
    return drawn
