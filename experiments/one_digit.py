"""The flags that name a trained classifier and one digit."""

import os
from typing import TYPE_CHECKING

from absl import flags

from experiments.errors import RunError
from experiments.shared_flags import (
    define_mnist_folders,
    define_path,
    define_picture,
    define_step,
    define_workdir_of_a_run,
)

if TYPE_CHECKING:  # Slow to import: done later, so that `--help` answers at once.
    from experiments.prediction import Prediction
    from experiments.restored import RestoredClassifier

flags.disclaim_key_flags()  # They belong to the module that calls.

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Defines --workdir, --step, --index, --image, --split, --output and data's."""
    define_workdir_of_a_run()
    define_step()
    flags.DEFINE_integer(
        "index", None, "Index of an example in the dataset (default: 0).", lower_bound=0
    )
    define_path("image", None, "A PNG or JPEG of one digit, instead of --index.")
    flags.DEFINE_enum(
        "split", "test", ("train", "test"), "Split that --index refers to."
    )
    define_picture(None, "The PNG to write (default: in the workdir).")
    define_mnist_folders()


def restore() -> "RestoredClassifier":
    """The classifier that --workdir and --step name.

    Raises:
        RunError: there is none, or the flags contradict each other.
    """
    from experiments import restored
    from experiments.data import mnist

    mnist.require_manual_dir(FLAGS.manual_dir)
    if FLAGS.image is not None and FLAGS.index is not None:
        raise RunError("--image: expected either --image or --index, got both")
    if FLAGS.image is not None and FLAGS["split"].present:
        raise RunError("--split: expected it with --index alone, got it with --image")
    return restored.restore(FLAGS.workdir, FLAGS.step)


def picture_path(classifier: "RestoredClassifier", prefix: str = "") -> str:
    """Where the picture goes: --output, or a name in the workdir.

    Raises:
        RunError: it is the picture of --image.
    """
    name = "image" if FLAGS.image is not None else f"{FLAGS.split}-{FLAGS.index or 0}"
    path = FLAGS.output or classifier.picture_path(f"{prefix}{name}")
    if FLAGS.image is not None and _are_same(path, FLAGS.image):
        raise RunError(
            f"--output: expected another file than that of --image, got {path}"
        )
    return path


def _are_same(path: str, other: str) -> bool:
    try:
        return os.path.samefile(path, other)
    except OSError:  # One of them is not there.
        return False


def predict(classifier: "RestoredClassifier") -> "Prediction":
    """The prediction for the digit of --image or --index."""
    if FLAGS.image is not None:
        return classifier.predict_image(FLAGS.image)
    return classifier.predict_example(
        FLAGS.split, FLAGS.index or 0, FLAGS.data_dir, FLAGS.manual_dir
    )
