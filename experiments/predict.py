"""Restores a trained classifier and predicts one digit.

Example: python -m experiments.predict --workdir=runs/RUN --image=7.png
"""

from experiments import command_line, one_digit
from experiments.errors import naming

one_digit.define_flags()


def main() -> None:
    # After the flags are parsed, so that `--help` and a mistyped flag answer at once.
    from experiments.pictures.prediction import save_prediction

    classifier = one_digit.restore()
    path = one_digit.picture_path(classifier)
    shown = one_digit.predict(classifier)
    print(f"{classifier.description}\n{shown.text()}", flush=True)
    with naming("--output"):
        save_prediction(shown, path)
    print(f"Picture: {path}")


if __name__ == "__main__":
    command_line.run(main)
