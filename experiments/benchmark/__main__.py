"""Times the stack beside Flax's own RNN and torch; see `--help` and the README."""

from absl import flags

from experiments import command_line

flags.DEFINE_bool("quick", False, "The notes' training step and inference only.")
flags.DEFINE_bool(
    "scaling", False, "Only how the training step scales with 1, 2, 4 and 8 devices."
)
flags.DEFINE_string(
    "output", "runs/benchmark", "Path of the results, less .json and .png."
)

FLAGS = flags.FLAGS


def main() -> None:
    # Behind the flags, so that `--help` and a mistyped flag answer at once.
    from experiments.benchmark import run

    run.run(FLAGS.quick, FLAGS.scaling, FLAGS.output)


if __name__ == "__main__":
    command_line.run(main)
