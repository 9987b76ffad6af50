"""Counts how many made-up drawings a trained classifier reads right.

Example: python -m experiments.drawings --workdir=runs/RUN
"""

from absl import flags

from experiments import command_line
from experiments.shared_flags import (
    define_picture,
    define_step,
    define_workdir_of_a_run,
)

define_workdir_of_a_run()
define_step()
flags.DEFINE_integer("hands", 2, "How many hands draw every shape.", lower_bound=1)
define_picture(None, "A PNG of the misread drawings (default: none).")

FLAGS = flags.FLAGS


def main() -> None:
    # After the flags are parsed, so that `--help` and a mistyped flag answer at once.
    from experiments import restored
    from experiments.drawings import score
    from experiments.errors import naming
    from experiments.whole_file import require_writable

    classifier = restored.restore(FLAGS.workdir, FLAGS.step)
    if FLAGS.output is not None:
        with naming("--output"):
            require_writable(FLAGS.output)
    scored = score.score(classifier, FLAGS.hands)
    print(f"{classifier.description}\n{scored.text()}")
    if FLAGS.output is not None:
        with naming("--output"):
            scored.save_mistakes(FLAGS.output)
        print(f"Picture: {FLAGS.output}")


if __name__ == "__main__":
    command_line.run(main)
