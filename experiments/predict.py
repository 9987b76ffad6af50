"""Restores a trained classifier and predicts one digit; see `--help`."""

from absl import flags

from experiments import command_line

flags.DEFINE_string("workdir", None, "Folder of a run of experiments.mnist (required).")
flags.DEFINE_integer("step", None, "Which checkpoint (default: the newest).")
flags.DEFINE_integer(
    "index", None, "Number of an example of the dataset (default: 0).", lower_bound=0
)
flags.DEFINE_string("image", None, "A PNG or JPEG of one digit, instead of --index.")
flags.DEFINE_enum("split", "test", ("train", "test"), "Where --index counts.")
flags.DEFINE_string("output", None, "The picture to write (default: in the workdir).")
flags.DEFINE_string(
    "data_dir", None, "Where MNIST is prepared (default: ~/tensorflow_datasets)."
)
flags.DEFINE_string("manual_dir", None, "Folder with MNIST's four upstream files.")
flags.mark_flag_as_required("workdir")

FLAGS = flags.FLAGS


def main() -> None:
    # Behind the flags, so that `--help` and a mistyped flag answer at once.
    from experiments import restored
    from experiments.errors import RunError

    if FLAGS.image is not None and FLAGS.index is not None:
        raise RunError("--image: expected either --image or --index, got both")
    classifier = restored.restore(FLAGS.workdir, FLAGS.step)
    if FLAGS.image is not None:
        shown, name = classifier.predict_image(FLAGS.image), "image"
    else:
        index = FLAGS.index or 0
        shown = classifier.predict_example(
            FLAGS.split, index, FLAGS.data_dir, FLAGS.manual_dir
        )
        name = f"{FLAGS.split}-{index}"
    path = FLAGS.output or classifier.picture_path(name)
    shown.save_figure(path)
    print(f"{classifier.description}\n{shown.text()}\nPicture: {path}")


if __name__ == "__main__":
    command_line.run(main)
