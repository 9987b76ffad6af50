"""Restores a trained classifier and predicts one digit.

Example: python -m experiments.predict --workdir=runs/RUN --image=7.png
"""

from absl import flags

from experiments import command_line, one_digit
from experiments.errors import naming
from experiments.one_digit import FLAGS

flags.adopt_module_key_flags(one_digit)  # For `--help`.


def main() -> None:
    classifier = one_digit.restore()
    shown, name = one_digit.predict(classifier)
    print(f"{classifier.description}\n{shown.text()}", flush=True)
    path = FLAGS.output or classifier.picture_path(name)
    with naming("--output"):
        shown.save_figure(path)
    print(f"Picture: {path}")


if __name__ == "__main__":
    command_line.run(main)
