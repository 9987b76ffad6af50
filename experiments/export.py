"""Writes a trained classifier as a file that JAX alone can run.

Example: python -m experiments.export --workdir=runs/RUN
"""

import os

from absl import flags

from experiments import command_line
from experiments.shared_flags import define_path, define_step, define_workdir_of_a_run

define_workdir_of_a_run()
define_step()
define_path(
    "output", None, "The file to write (default: classifier.jaxexport in the workdir)."
)

FLAGS = flags.FLAGS


def main() -> None:
    # After the flags are parsed, so that `--help` and a mistyped flag answer at once.
    from experiments import artifact, restored
    from experiments.errors import naming

    classifier = restored.restore(FLAGS.workdir, FLAGS.step)
    exported = artifact.export_classifier(classifier)
    path = FLAGS.output or os.path.join(FLAGS.workdir, "classifier.jaxexport")
    with naming("--output"):
        exported.write(path)
    print(
        f"{classifier.description}\n"
        f"Artifact: {path}, for {' and '.join(exported.description['platforms'])}\n"
        f"Input: {exported.description['input']}\n"
        f"Output: {exported.description['output']}\n"
        f"Description: {path}.json"
    )


if __name__ == "__main__":
    command_line.run(main)
